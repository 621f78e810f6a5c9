#include "cli/command_line.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <sstream>

#include "marlin/sdk/error.h"

namespace marlin::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

const OptionTable kTrainer = {
    {.name = "epochs", .type = OptionType::kInt, .default_value = "1", .help = "Epochs in total.", .unit = "epochs", .min = 0},
    {.name = "max_steps", .type = OptionType::kInt, .help = "Stop after so many steps.", .min = 1},
    {.name = "clip_grads", .type = OptionType::kBool, .default_value = "true", .help = "Clip."},
    {.name = "early_stopping.metric", .help = "What to watch."},
    {.name = "device", .default_value = "auto", .help = "Where to train.", .choices = {"auto", "cpu"}},
    {.name = "writers", .type = OptionType::kList, .default_value = "stdout", .help = "Where metrics go."},
    {.name = "resume", .default_value = "never", .help = "Whether to go on."},
    {.name = "checkpointer", .type = OptionType::kList, .default_value = "default", .help = "What saves."},
    {.name = "config", .help = "A file of settings."},
    {.name = "print_config", .type = OptionType::kBool, .default_value = "false", .help = "Print the settings."},
    {.name = "help", .type = OptionType::kBool, .default_value = "false", .help = "Print this."},
};
const OptionTable kModule = {
    {.name = "lr", .type = OptionType::kDouble, .default_value = "0.1", .help = "Learning rate."},
    {.name = "shift", .type = OptionType::kInt, .default_value = "0", .help = "May be negative."},
};
const OptionTable kCheckpointer = {
    {.name = "period", .type = OptionType::kInt, .default_value = "1", .help = "Save when index % period == 0.", .unit = "epochs", .min = 1},
    {.name = "save_dir", .default_value = "checkpoints", .help = "Where to write."},
    {.name = "delete_existing_checkpoints", .type = OptionType::kBool, .default_value = "false", .help = "Start over."},
};
const std::vector<OptionGroup> kGroups = {{"Trainer", {""}, kTrainer},
                                          {"Module", {"module."}, kModule},
                                          {"Checkpointer default", {"checkpointer.", "checkpointer.default."}, kCheckpointer}};
enum { kTrainerGroup, kModuleGroup, kCheckpointerGroup };

CommandLine line(const std::vector<std::string>& words) {
  std::vector<const char*> argv = {"/usr/bin/digits"};
  for (const std::string& word : words) argv.push_back(word.c_str());
  return CommandLine(static_cast<int>(argv.size()), argv.data());
}

std::vector<Options> parse(const std::vector<std::string>& words) { return line(words).parse(kGroups); }

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::kInvalidArgument);
    EXPECT_THAT(error.what(), Not(HasSubstr("\n")));
    return error.what();
  }
  return "not refused";
}

std::string refusal(const std::vector<std::string>& words) {
  return refusal([&] { (void)parse(words); });
}

class CommandLineTest : public ::testing::Test {
 protected:
  // Each case has a working folder of its own, so that messages name files as a user types them.
  void SetUp() override {
    before_ = std::filesystem::current_path();
    folder_ = std::filesystem::temp_directory_path() / ("marlin_cli_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
    std::filesystem::current_path(folder_);
  }
  void TearDown() override {
    std::filesystem::current_path(before_);
    std::filesystem::remove_all(folder_);
  }
  static void write(const std::string& name, const std::string& text) { std::ofstream(name, std::ios::binary) << text; }

 private:
  std::filesystem::path before_, folder_;
};

TEST_F(CommandLineTest, ValuesMayBeJoinedOrFollow) {
  const auto options = parse({"--epochs", "5", "--module.lr=3e-4", "--checkpointer.save_dir", "a b", "--writers=jsonl,stdout", "--early_stopping.metric", ""});
  EXPECT_EQ(options[kTrainerGroup].get<int64_t>("epochs"), 5);
  EXPECT_EQ(options[kModuleGroup].get<double>("lr"), 3e-4);
  EXPECT_EQ(options[kCheckpointerGroup].text("save_dir"), "a b");
  EXPECT_THAT(options[kTrainerGroup].get<std::vector<std::string>>("writers"), ElementsAre("jsonl", "stdout"));
  EXPECT_EQ(options[kTrainerGroup].text("early_stopping.metric"), "");
  EXPECT_FALSE(options[kTrainerGroup].given("clip_grads"));
  EXPECT_EQ(parse({"--checkpointer.save_dir="})[kCheckpointerGroup].text("save_dir"), "");
  EXPECT_EQ(parse({"--checkpointer.save_dir=--a=b"})[kCheckpointerGroup].text("save_dir"), "--a=b");
  EXPECT_EQ(line({}).program(), "digits");
}

TEST_F(CommandLineTest, BooleansTakeTrueFalseOrNothing) {
  EXPECT_TRUE(parse({"--print_config"})[kTrainerGroup].get<bool>("print_config"));
  EXPECT_FALSE(parse({"--clip_grads", "false"})[kTrainerGroup].get<bool>("clip_grads"));
  EXPECT_FALSE(parse({"--clip_grads=false", "--epochs", "2"})[kTrainerGroup].get<bool>("clip_grads"));
  EXPECT_TRUE(parse({"--checkpointer.delete_existing_checkpoints", "--epochs", "2"})[kCheckpointerGroup].get<bool>("delete_existing_checkpoints"));
  EXPECT_EQ(refusal({"--clip_grads", "yes"}), "--clip_grads: must be true or false, got 'yes'");
  EXPECT_EQ(refusal({"--clip_grads="}), "--clip_grads: must be true or false, got ''");
}

TEST_F(CommandLineTest, NegativeNumbersAreValues) {
  const auto options = parse({"--module.shift", "-3", "--module.lr", "-.5e-1"});
  EXPECT_EQ(options[kModuleGroup].get<int64_t>("shift"), -3);
  EXPECT_EQ(options[kModuleGroup].get<double>("lr"), -0.05);
}

TEST_F(CommandLineTest, AnUnknownFlagNamesTheNearest) {
  EXPECT_EQ(refusal({"--epoch", "3"}), "unknown flag --epoch; did you mean --epochs?");
  EXPECT_EQ(refusal({"--period", "3"}), "unknown flag --period; did you mean --checkpointer.period?");
  EXPECT_EQ(refusal({"--checkpointer.default.perid=3"}), "unknown flag --checkpointer.default.perid; did you mean --checkpointer.default.period?");
  EXPECT_EQ(refusal({"--nothing_like_it"}), "unknown flag --nothing_like_it; --help lists all there are");
  EXPECT_EQ(refusal({"--EPOCHS", "3"}), "unknown flag --EPOCHS; --help lists all there are");
  EXPECT_EQ(refusal({"---epochs", "3"}), "unknown flag ---epochs; did you mean --epochs?");
}

TEST_F(CommandLineTest, NoPrefixOfAFlagStandsForIt) {
  EXPECT_THAT(refusal({"--dev", "cpu"}), HasSubstr("unknown flag --dev"));
  EXPECT_THAT(refusal({"--checkpointer.save", "x"}), HasSubstr("unknown flag --checkpointer.save"));
}

TEST_F(CommandLineTest, WhatIsNoFlagIsAnError) {
  EXPECT_EQ(refusal({"foo"}), "unexpected argument 'foo'");
  EXPECT_EQ(refusal({"--epochs", "3", "4"}), "unexpected argument '4'");
  EXPECT_EQ(refusal({"-help"}), "unexpected argument '-help'; did you mean --help?");
  EXPECT_EQ(refusal({"--", "--epochs", "3"}), "unexpected argument '--'");
  EXPECT_EQ(refusal({""}), "unexpected argument ''");
  EXPECT_EQ(refusal({"--=3"}), "unexpected argument '--=3'");
}

TEST_F(CommandLineTest, AMissingValueIsAnError) {
  EXPECT_EQ(refusal({"--epochs"}), "--epochs: a value is missing");
  EXPECT_EQ(refusal({"--checkpointer.save_dir", "--epochs", "3"}), "--checkpointer.save_dir: a value is missing");
}

TEST_F(CommandLineTest, AnOptionThatIsGivenTwiceIsAnError) {
  EXPECT_EQ(refusal({"--epochs", "3", "--epochs=3"}), "--epochs: given twice");
  EXPECT_EQ(refusal({"--checkpointer.period", "2", "--checkpointer.default.period", "3"}),
            "--checkpointer.default.period: given already as --checkpointer.period");
}

TEST_F(CommandLineTest, BothPrefixesMeanTheSameOption) {
  EXPECT_EQ(parse({"--checkpointer.period", "4"})[kCheckpointerGroup].get<int64_t>("period"), 4);
  EXPECT_EQ(parse({"--checkpointer.default.period", "4"})[kCheckpointerGroup].get<int64_t>("period"), 4);
}

TEST_F(CommandLineTest, EveryProblemIsInTheOneMessage) {
  write("run.ini", "epochs = many\nperid = 2\n");
  EXPECT_EQ(refusal({"--config", "run.ini", "--checkpointer.period=0", "x\ny", "--nothing_like_it", "--device", "gpu"}),
            "run.ini:1: epochs: must be a whole number, got 'many'; run.ini:2: unknown name perid; did you mean checkpointer.period?; "
            "--checkpointer.period: must be at least 1 (epochs), got 0; unexpected argument 'x\\ny'; unknown flag --nothing_like_it; --help lists all there are; "
            "--device: must be one of auto, cpu, got 'gpu'; did you mean cpu?");
}

TEST_F(CommandLineTest, TheCommandLineWinsOverTheFile) {
  write("run.ini", "epochs = 7\ndevice = cpu\n[checkpointer]\nperiod = 2\n[checkpointer.default]\nsave_dir = \"a # b\"\n[module]\nshift = -2\n");
  const auto options = parse({"--epochs", "9", "--config=run.ini", "--checkpointer.default.period", "5"});
  EXPECT_EQ(options[kTrainerGroup].get<int64_t>("epochs"), 9);
  EXPECT_EQ(options[kTrainerGroup].text("device"), "cpu");
  EXPECT_EQ(options[kCheckpointerGroup].get<int64_t>("period"), 5);
  EXPECT_EQ(options[kCheckpointerGroup].text("save_dir"), "a # b");
  EXPECT_EQ(options[kModuleGroup].get<int64_t>("shift"), -2);
}

TEST_F(CommandLineTest, AFileIsHeldToTheSameRules) {
  write("run.ini", "epochs = 1\nepochs = 2\n[checkpointer]\nperiod = 0\n[checkpointer.default]\nperiod = 2\n");
  EXPECT_EQ(refusal({"--config", "run.ini"}),
            "run.ini:2: epochs: given twice; run.ini:4: checkpointer.period: must be at least 1 (epochs), got 0; "
            "run.ini:6: checkpointer.default.period: given already as checkpointer.period");
  write("run.ini", "config = other.ini\nhelp = true\n[module]\nlrr = 1\n");
  EXPECT_EQ(refusal({"--config", "run.ini"}),
            "run.ini:1: config cannot stand in a file; type --config; run.ini:2: help cannot stand in a file; type --help; "
            "run.ini:4: unknown name module.lrr; did you mean module.lr?");
  EXPECT_EQ(refusal({"--config", "none.ini"}), "--config: cannot read none.ini: No such file or directory");
  EXPECT_EQ(refusal({"--config"}), "--config: a value is missing");
}

TEST_F(CommandLineTest, ThePreviewTakesItsOptionsAndPassesOverTheRest) {
  write("run.ini", "checkpointer = best_k\nwriters = jsonl\n[checkpointer.best_k]\nn_saved = 3\n");
  const OptionTable early = {kTrainer[5], kTrainer[7], kTrainer[8], kTrainer[10]};
  const Options options = line({"--checkpointer.best_k.n_saved", "3", "--config", "run.ini", "word", "--help", "--writers", "stdout", "--"}).preview(early);
  EXPECT_THAT(options.get<std::vector<std::string>>("checkpointer"), ElementsAre("best_k"));
  EXPECT_THAT(options.get<std::vector<std::string>>("writers"), ElementsAre("stdout"));
  EXPECT_TRUE(options.get<bool>("help"));
  EXPECT_EQ(refusal([&] { (void)line({"--writers", "a", "--writers", "b", "--nothing"}).preview(early); }), "--writers: given twice");
}

TEST_F(CommandLineTest, ANameThatTwoGroupsDeclareIsRefused) {
  EXPECT_EQ(refusal([] { (void)line({}).parse({{"A", {""}, {{.name = "module.lr"}}}, {"B", {"module."}, kModule}}); }),
            "--module.lr is declared by two groups of options");
}

TEST_F(CommandLineTest, HelpListsEveryOptionWithItsFactsWithinAHundredColumns) {
  std::vector<OptionGroup> groups = kGroups;
  groups[kModuleGroup].table.push_back({.name = "a_name_that_is_so_long_that_it_needs_a_line_of_its_own",
                                        .type = OptionType::kDouble,
                                        .default_value = "0.5",
                                        .help = "Words enough that the sentence cannot stand in one line and has to be continued in the next one.",
                                        .min = 0,
                                        .max = 1});
  const std::string help = CommandLine::help("digits [--flag value ...]", groups);
  EXPECT_THAT(help, HasSubstr("digits [--flag value ...]\n\nTrainer:\n"));
  EXPECT_THAT(help, HasSubstr("  --epochs int                  Epochs in total. [default 1; unit epochs; at least 0]\n"));
  EXPECT_THAT(help, HasSubstr("  --max_steps int               Stop after so many steps. [default none; at least 1]\n"));
  EXPECT_THAT(help, HasSubstr("Where to train. [default auto; one of auto, cpu]\n"));
  EXPECT_THAT(help, HasSubstr("\nCheckpointer default (or --checkpointer.default.NAME):\n  --checkpointer.period int "));
  EXPECT_THAT(help, HasSubstr("  --module.a_name_that_is_so_long_that_it_needs_a_line_of_its_own number\n"));
  EXPECT_THAT(help, HasSubstr("0 to 1]"));
  std::istringstream lines(help);
  for (std::string text; std::getline(lines, text);) EXPECT_LE(text.size(), 100U) << text;
}

TEST_F(CommandLineTest, ThePrintedConfigLeavesOutWhatBelongsToTheCall) {
  const std::string text = CommandLine::print_config(kGroups, parse({"--print_config", "--epochs", "3", "--checkpointer.save_dir", "a # b"}));
  EXPECT_EQ(text,
            "epochs = 3\n# max_steps =\nclip_grads = true\n# early_stopping.metric =\ndevice = auto\nwriters = stdout\nresume = never\n"
            "checkpointer = default\n\n[module]\nlr = 0.1\nshift = 0\n\n[checkpointer]\nperiod = 1\nsave_dir = \"a # b\"\n"
            "delete_existing_checkpoints = false\n");
}

TEST_F(CommandLineTest, GroupsWithoutAPrefixArePrintedBeforeTheFirstSection) {
  const std::vector<OptionGroup> groups = {kGroups[kModuleGroup], kGroups[kTrainerGroup]};
  write("run.ini", CommandLine::print_config(groups, line({"--epochs", "4", "--module.shift", "-1"}).parse(groups)));
  const auto again = line({"--config", "run.ini"}).parse(groups);
  EXPECT_EQ(again[1].get<int64_t>("epochs"), 4);
  EXPECT_EQ(again[0].get<int64_t>("shift"), -1);
}

TEST_F(CommandLineTest, AnyPrintedConfigReadsBackToTheSameValues) {
  std::mt19937 random(3);
  const std::string likely = " \t\r\n\"\\#;=[]ab,.-";
  const auto text = [&] {
    std::string result;
    for (size_t size = random() % 10; size > 0; --size) {
      result += random() % 4 == 0 ? static_cast<char>(1 + random() % 255) : likely[random() % likely.size()];
    }
    return result;
  };
  for (int round = 0; round < 500; ++round) {
    std::vector<std::string> words;
    const auto perhaps = [&](const std::string& flag, const std::string& value) {
      if (random() % 2 == 0) words.push_back(flag + "=" + value);
    };
    perhaps("--epochs", std::to_string(random() % 100));
    perhaps("--max_steps", std::to_string(1 + random() % 100));
    perhaps("--clip_grads", random() % 2 == 0 ? "true" : "false");
    perhaps("--early_stopping.metric", text());
    perhaps("--writers", text());
    perhaps("--resume", text());
    perhaps("--module.lr", std::to_string(static_cast<double>(random()) / 1e5 - 1000));
    perhaps("--module.shift", std::to_string(static_cast<int64_t>(random()) - 2147483648));
    perhaps("--checkpointer.default.save_dir", text());
    perhaps("--checkpointer.period", std::to_string(1 + random() % 100));
    std::shuffle(words.begin(), words.end(), random);

    const auto before = parse(words);
    const std::string printed = CommandLine::print_config(kGroups, before);
    write("run.ini", printed);
    const auto after = parse({"--config", "run.ini"});
    for (size_t g = 0; g < kGroups.size(); ++g) {
      for (const OptionSpec& spec : kGroups[g].table) {
        if (spec.name == "config") continue;
        ASSERT_EQ(after[g].has(spec.name), before[g].has(spec.name)) << spec.name << "\n" << printed;
        if (!before[g].has(spec.name)) continue;
        ASSERT_EQ(after[g].text(spec.name), before[g].text(spec.name)) << spec.name << "\n" << printed;
      }
    }
    ASSERT_EQ(CommandLine::print_config(kGroups, after), printed);
  }
}

}  // namespace
}  // namespace marlin::cli
