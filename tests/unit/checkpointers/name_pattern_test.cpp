// Names that say what is in them.
#include "marlin/checkpointers/name_pattern.h"

#include <gtest/gtest.h>

#include <limits>
#include <set>

#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::ThrowsError;
using Field = NamePattern::Field;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

NameParts parts_of(std::optional<double> score, std::optional<int64_t> step) {
  return {.filename_prefix = "best", .name = "model", .score_name = "acc", .score = score, .global_step = step};
}

// ---- patterns

TEST(NamePatternTest, KnowsItsPlaceholders) {
  const NamePattern pattern("{name}_{global_step:05d}.{ext}");
  EXPECT_TRUE(pattern.has(Field::kName));
  EXPECT_TRUE(pattern.has(Field::kGlobalStep));
  EXPECT_TRUE(pattern.has(Field::kExt));
  EXPECT_FALSE(pattern.has(Field::kScore));
  EXPECT_FALSE(pattern.has(Field::kScoreName));
  EXPECT_FALSE(pattern.has(Field::kPrefix));
  EXPECT_FALSE(pattern.is_fixed());
  EXPECT_EQ(pattern.text(), "{name}_{global_step:05d}.{ext}");
  EXPECT_TRUE(NamePattern("{filename_prefix}{name}.{ext}").is_fixed());
  EXPECT_FALSE(NamePattern("{name}_{score}").is_fixed());
}

TEST(NamePatternTest, WhatIsWrongIsRefusedByTheOptionsName) {
  for (const char* wrong : {"", "{", "{name", "{}", "{random_key}.pt", "{Name}.pt", "{name}{name}", "{global_step}_{global_step:05d}", "a/{name}.pt", "{name:05d}.pt",
                            "{global_step:.2f}", "{global_step:x}", "{score:05d}", "{score:.f}", "{score:2f}"}) {
    EXPECT_THAT([&] { NamePattern pattern(wrong, "my_pattern"); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("my_pattern"))) << wrong;
  }
  EXPECT_THAT([] { NamePattern pattern(std::string_view("a\0b", 3)); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("filename_pattern")));
  EXPECT_THAT([] { NamePattern pattern("{random_key}.pt"); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("random_key")));
}

TEST(NamePatternTest, DoubledBracesStandForBraces) { EXPECT_EQ(NamePattern("{{{name}}}-{global_step}").name(parts_of({}, 3)), "{model}-3"); }

TEST(NamePatternTest, FormatsOfSteps) {
  EXPECT_EQ(NamePattern("{global_step:05d}").name(parts_of({}, 7)), "00007");
  EXPECT_EQ(NamePattern("{global_step:05d}").name(parts_of({}, 1234567)), "1234567");
  EXPECT_EQ(NamePattern("{global_step:02d}").name(parts_of({}, 0)), "00");
}

TEST(NamePatternTest, FormatsOfScores) {
  EXPECT_EQ(NamePattern("{score:.2f}").name(parts_of(0.126, {})), "0.13");
  EXPECT_EQ(NamePattern("{score:.0f}").name(parts_of(2.7, {})), "3");
  EXPECT_EQ(NamePattern("{score:.6f}").name(parts_of(-0.5, {})), "-0.500000");
}

TEST(NamePatternTest, APartThatIsNotThereIsNamed) {
  EXPECT_THAT([] { (void)NamePattern("{name}_{score}").name(parts_of({}, 3)); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("score")));
  EXPECT_THAT([] { (void)NamePattern("{name}_{global_step}").name(parts_of(0.5, {})); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("global_step")));
  EXPECT_THAT([] { (void)NamePattern("{score_name}_{global_step}").name({.global_step = 3}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("score_name")));
}

TEST(NamePatternTest, NamesAreNoLongerThanTheSystemTakes) {
  const NamePattern pattern("{name}");
  EXPECT_EQ(pattern.name({.name = std::string(255, 'x')}).size(), 255u);
  EXPECT_THAT([&] { (void)pattern.name({.name = std::string(256, 'x')}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("255")));
}

TEST(NamePatternTest, SlashesInScoreNamesStandAsUnderscores) {
  EXPECT_EQ(NamePattern("{score_name}={score}").name({.score_name = "val/acc", .score = 0.5}), "val_acc=0.5000");
}

// ---- reading names back

TEST(NamePatternTest, WhatItMadeItReads) {
  for (const char* text : {"{filename_prefix}_{name}_{global_step}_{score_name}={score}.{ext}", "{global_step:05d}-{score:.2f}-{name}", "{score}_{global_step}.chk", "{name}{score}"}) {
    const NamePattern pattern(text);
    for (const double score : {0.25, -3.0, 1e6, 0.0, kInfinity, -kInfinity}) {
      for (const int64_t step : {0, 7, 1234567}) {
        const NameParts parts = parts_of(score, step);
        const auto parsed = pattern.parse(pattern.name(parts), parts_of({}, {}));
        ASSERT_TRUE(parsed) << pattern.name(parts);
        EXPECT_EQ(parsed->score, score) << pattern.name(parts);
        EXPECT_EQ(parsed->global_step, pattern.has(Field::kGlobalStep) ? std::optional<int64_t>(step) : std::nullopt);
      }
    }
  }
}

TEST(NamePatternTest, ReadsDecimalsAsTheyAreWritten) {
  const NamePattern pattern("{name}_{score}.{ext}");
  const auto parsed = pattern.parse("model_0.7700.pt", parts_of({}, {}));
  ASSERT_TRUE(parsed);
  EXPECT_EQ(parsed->score, 0.77);
  EXPECT_EQ(parsed->global_step, std::nullopt) << "the pattern does not say";
}

TEST(NamePatternTest, OtherNamesAreNotItsOwn) {
  const NamePattern pattern("{filename_prefix}_{name}_{global_step}.{ext}");
  ASSERT_TRUE(pattern.parse("best_model_12.pt", parts_of({}, {})));
  for (const char* other : {"", "best_model_.pt", "best_model_12", "best_model_12.pth", "best_model_12.PT", "best_model_12.pt.tmp", ".best_model_12.pt", "xbest_model_12.pt",
                            "worst_model_12.pt", "best_other_12.pt", "best_model_x.pt", "best_model_-12.pt", "best_model_1.5.pt", "best_model_latest_12.pt",
                            "best_model_99999999999999999999.pt"}) {
    EXPECT_FALSE(pattern.parse(other, parts_of({}, {}))) << other;
  }
}

TEST(NamePatternTest, WhatUniqueNameAddsIsPassedOver) {
  const NamePattern pattern("{name}_{score}.{ext}");
  for (const char* name : {"model_0.7700.pt", "model_0.7700_120.pt", "model_0.7700_120_2.pt"}) {
    const auto parsed = pattern.parse(name, parts_of({}, {}));
    ASSERT_TRUE(parsed) << name;
    EXPECT_EQ(parsed->score, 0.77) << name;
  }
}

TEST(NamePatternTest, WithoutANameAnyNameIsItsOwn) {
  const NamePattern pattern("{filename_prefix}_{name}_{global_step}.{ext}");
  const NameParts any{.filename_prefix = "best", .name = ""};
  for (const char* name : {"best_model_12.pt", "best_other_12.pt", "best_a_b_12.pt"}) {
    const auto parsed = pattern.parse(name, any);
    ASSERT_TRUE(parsed) << name;
    EXPECT_EQ(parsed->global_step, 12) << name;
  }
  EXPECT_FALSE(pattern.parse("worst_model_12.pt", any));
  EXPECT_FALSE(pattern.parse("best_model_x.pt", any));
}

TEST(NamePatternTest, AFixedNameIsRead) {
  const NamePattern pattern("{name}.{ext}");
  const auto parsed = pattern.parse("model.pt", parts_of({}, {}));
  ASSERT_TRUE(parsed);
  EXPECT_EQ(parsed->score, std::nullopt);
  EXPECT_EQ(parsed->global_step, std::nullopt);
  EXPECT_FALSE(pattern.parse("other.pt", parts_of({}, {})));
}

// ---- scores as text

TEST(ScoreTextTest, WholeNumbersArePlainAndOthersHaveDecimals) {
  EXPECT_EQ(score_text(8.0), "8");
  EXPECT_EQ(score_text(-3.0), "-3");
  EXPECT_EQ(score_text(1e6), "1000000");
  EXPECT_EQ(score_text(0.0), "0");
  EXPECT_EQ(score_text(-0.0), "0");
  EXPECT_EQ(score_text(0.9999), "0.9999");
  EXPECT_EQ(score_text(0.99999), "1.0000");
  EXPECT_EQ(score_text(-0.77), "-0.7700");
  EXPECT_EQ(score_text(0.00001), "0.0000");
  EXPECT_EQ(score_text(-0.00001), "0.0000");
  EXPECT_EQ(score_text(kInfinity), "inf");
  EXPECT_EQ(score_text(-kInfinity), "-inf");
  EXPECT_EQ(score_text(0.126, 2), "0.13");
}

// ---- unique names

TEST(UniqueNameTest, TheFirstThatIsFree) {
  std::set<std::string> taken;
  const auto is_taken = [&](const std::string& name) { return taken.contains(name); };
  std::vector<std::string> made;
  for (int i = 0; i < 4; ++i) {
    made.push_back(unique_name("model_0.7700.pt", 120, is_taken));
    taken.insert(made.back());
  }
  EXPECT_THAT(made, ::testing::ElementsAre("model_0.7700.pt", "model_0.7700_120.pt", "model_0.7700_120_2.pt", "model_0.7700_120_3.pt"));
}

TEST(UniqueNameTest, SeparatorsAreSeen) {
  EXPECT_TRUE(holds_separator("a/b"));
  EXPECT_TRUE(holds_separator(std::string_view("a\0b", 3)));
  EXPECT_FALSE(holds_separator("a_b.c-d"));
  EXPECT_FALSE(holds_separator(""));
}

}  // namespace
}  // namespace marlin
