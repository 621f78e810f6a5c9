#include "cli/config_file.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <random>

namespace marlin::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::StartsWith;

std::vector<std::string> lines_of(const ConfigFile& file) {
  std::vector<std::string> lines;
  for (const ConfigEntry& entry : file.entries) lines.push_back(std::to_string(entry.line) + " " + entry.name + "=" + entry.value);
  return lines;
}

TEST(ConfigFileTest, SectionsStandBeforeTheNamesOfTheirEntries) {
  const ConfigFile file = parse_config("epochs = 3\n[checkpointer]\nperiod=2\n\n[ checkpointer.best_k ]  # a list\nn_saved = 4\n", "run.ini");
  EXPECT_THAT(lines_of(file), ElementsAre("1 epochs=3", "3 checkpointer.period=2", "6 checkpointer.best_k.n_saved=4"));
  EXPECT_THAT(file.problems, IsEmpty());
}

TEST(ConfigFileTest, CommentsStartALineOrFollowWhiteSpace) {
  const ConfigFile file = parse_config("# one\n  ; two\na = x#y;z\nb = x # y\nc = x\t; y\nd = # nothing\ne = \"x # y\" # z\n", "run.ini");
  EXPECT_THAT(lines_of(file), ElementsAre("3 a=x#y;z", "4 b=x", "5 c=x", "6 d=", "7 e=x # y"));
  EXPECT_THAT(file.problems, IsEmpty());
}

TEST(ConfigFileTest, QuotesKeepSpacesAndKnowFiveEscapes) {
  const ConfigFile file = parse_config(R"(a = "  x  "
b = "say \"hi\" \\ \n\r\t"
c = ""
d = x "y" z
e = a = b
)", "run.ini");
  EXPECT_THAT(lines_of(file), ElementsAre("1 a=  x  ", "2 b=say \"hi\" \\ \n\r\t", "3 c=", "4 d=x \"y\" z", "5 e=a = b"));
  EXPECT_THAT(file.problems, IsEmpty());
}

TEST(ConfigFileTest, ByteOrderMarkCarriageReturnsAndAMissingLastLineEndDoNotMatter) {
  const ConfigFile file = parse_config("\xef\xbb\xbf[module]\r\n\r\nlr = 0.1\r\nname = \"x\"", "run.ini");
  EXPECT_THAT(lines_of(file), ElementsAre("3 module.lr=0.1", "4 module.name=x"));
  EXPECT_THAT(file.problems, IsEmpty());
}

TEST(ConfigFileTest, EveryBrokenLineIsNamedAndTheOthersAreRead) {
  const ConfigFile file = parse_config(
      "epochs 3\n[module\n[]\n = 3\na b = 3\nc = \"x\nd = \"x\" y\ne = \"\\q\"\nf = \"x\\\ngood = 1\n[x] y\n", "run.ini");
  EXPECT_THAT(file.problems, ElementsAre("run.ini:1: expected name = value, got 'epochs 3'",
                                         "run.ini:2: a section needs a closing bracket, got '[module'",
                                         "run.ini:3: not a section name: '[]'",
                                         "run.ini:4: not a name: ''",
                                         "run.ini:5: not a name: 'a b'",
                                         "run.ini:6: the closing quote is missing",
                                         "run.ini:7: 'y' after the closing quote; write \\\" for a quote within a value",
                                         "run.ini:8: unknown escape \\q in a quoted value; there are \\\" \\\\ \\n \\r \\t",
                                         "run.ini:9: the closing quote is missing",
                                         "run.ini:11: not a section name: '[x] y'"));
  EXPECT_THAT(lines_of(file), ElementsAre("10 good=1"));
}

TEST(ConfigFileTest, AFileThatCannotBeReadSaysWhichAndWhy) {
  const std::string folder = std::filesystem::temp_directory_path();
  EXPECT_THAT(read_config("no/such.ini").problems, ElementsAre("--config: cannot read no/such.ini: No such file or directory"));
  EXPECT_THAT(read_config(folder).problems, ElementsAre("--config: cannot read " + folder + ": it is a folder"));
  EXPECT_THAT(read_config("").problems, ElementsAre(StartsWith("--config: must name a file")));
}

TEST(ConfigFileTest, ValuesAreQuotedOnlyWhereTheyMust) {
  EXPECT_EQ(config_value("runs/a b"), "runs/a b");
  EXPECT_EQ(config_value(""), "\"\"");
  EXPECT_EQ(config_value(" x"), "\" x\"");
  EXPECT_EQ(config_value("a#b"), "\"a#b\"");
  EXPECT_EQ(config_value("a\"b\\\n"), "\"a\\\"b\\\\\\n\"");
}

TEST(ConfigFileTest, AnyTextIsReadBackAsItWasWritten) {
  std::mt19937 random(1);
  const std::string likely = " \t\r\n\"\\#;=[]ab,.\v\f'";
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    for (size_t size = random() % 12; size > 0; --size) {
      text += random() % 4 == 0 ? static_cast<char>(random() % 256) : likely[random() % likely.size()];
    }
    const ConfigFile file = parse_config("[s]\nx = " + config_value(text) + "\ny = 1\n", "run.ini");
    ASSERT_THAT(file.problems, IsEmpty()) << "round " << round;
    ASSERT_EQ(file.entries.size(), 2U);
    ASSERT_EQ(file.entries[0].value, text) << "round " << round;
  }
}

TEST(ConfigFileTest, NoInputTakesTheReaderDown) {
  std::mt19937 random(2);
  const std::string likely = "\n\n\"\\#;=[]a. \r";
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    for (size_t size = random() % 40; size > 0; --size) text += likely[random() % likely.size()];
    const ConfigFile file = parse_config(text, "run.ini");
    ASSERT_LE(file.entries.size() + file.problems.size(), 40U);
  }
}

}  // namespace
}  // namespace marlin::cli
