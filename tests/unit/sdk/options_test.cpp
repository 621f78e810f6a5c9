#include "marlin/sdk/options.h"

#include <gmock/gmock.h>

#include <functional>

#include "marlin/sdk/error.h"

namespace marlin {
namespace {

using ::testing::StartsWith;

struct Sample {
  int64_t period = 2;
  double lr = 0.1;
  bool flag = false;
  std::optional<std::string> name = {};
  std::vector<std::string> parts = {"a", "b"};

  static std::vector<OptionField<Sample>> option_fields() {
    return {option_field("period", &Sample::period, "Every so often.", {.unit = "epochs", .min = 1}),
            option_field("lr", &Sample::lr, "Learning rate."),
            option_field("flag", &Sample::flag, "A switch."),
            option_field("name", &Sample::name, "A name."),
            option_field("parts", &Sample::parts, "Parts.")};
  }
};

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(OptionsTest, DefaultsComeFromTheStructAndReadBackEqual) {
  const Options options(option_table<Sample>());
  const auto sample = parse<Sample>(options);
  EXPECT_EQ(sample.period, 2);
  EXPECT_EQ(sample.lr, 0.1);
  EXPECT_EQ(sample.name, std::nullopt);
  EXPECT_EQ(sample.parts, (std::vector<std::string>{"a", "b"}));
  EXPECT_FALSE(options.given("period"));
}

struct Forgetful {
  int64_t period = 1;
  std::string name = "x";
  std::function<void()> callback = {};

  static std::vector<OptionField<Forgetful>> option_fields() { return {option_field("period", &Forgetful::period, "Every so often.")}; }
  static constexpr size_t kFieldsWithoutOption = 1;
};

TEST(OptionsTest, AFieldThatTheTableLacksIsToldOf) {
  EXPECT_EQ(message_of([] { (void)option_table<Forgetful>(); }),
            "the option table of marlin::(anonymous namespace)::Forgetful lists 1 of its 2 fields; add the others to option_fields(), or count those without an option "
            "in kFieldsWithoutOption");
}

TEST(OptionsTest, RefusesWhatIsOutOfRangeAndNamesTheFlag) {
  Options options(option_table<Sample>());
  EXPECT_EQ(message_of([&] { options.set("period", "0", "--checkpointer.period"); }), "--checkpointer.period: must be at least 1 (epochs), got 0");
  EXPECT_EQ(message_of([&] { options.set("period", "x"); }), "period: must be a whole number, got 'x'");
  EXPECT_EQ(message_of([&] { options.set("flag", "yes"); }), "flag: must be true or false, got 'yes'");
  EXPECT_THAT(message_of([&] { options.set("perid", "1"); }), StartsWith("perid: no option 'perid'; did you mean period? There are: period, "));
  EXPECT_THAT(message_of([&] { options.set("unlike_all", "1"); }), StartsWith("unlike_all: no option 'unlike_all'; there are: period, "));
  EXPECT_EQ(options.get<int64_t>("period"), 2) << "a refused value must not stick";
}

}  // namespace
}  // namespace marlin
