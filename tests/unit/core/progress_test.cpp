#include "marlin/core/progress.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <chrono>

#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::MatchesRegex;
using ::testing::Not;
using ::testing::StartsWith;
using testing::ThrowsError;

std::chrono::steady_clock::time_point test_time{};
std::chrono::steady_clock::time_point test_clock() { return test_time; }
void pass(std::chrono::milliseconds time) { test_time += time; }

class ProgressTest : public ::testing::Test {
 protected:
  ProgressTest() : file_(std::tmpfile()) {}
  ~ProgressTest() override { std::fclose(file_); }

  std::FILE* stream() const { return file_; }
  std::string written() const {
    std::fflush(file_);
    std::string text(static_cast<size_t>(std::ftell(file_)), '\0');
    std::rewind(file_);
    EXPECT_EQ(std::fread(text.data(), 1, text.size(), file_), text.size());
    return text;
  }
  static Metrics metrics() {
    Metrics result;
    result.set("train/loss", 0.53125);
    return result;
  }

 private:
  std::FILE* file_;
};

TEST_F(ProgressTest, BarShowsWhereItIsAndEndsInOneLine) {
  const auto progress = make_progress("bar", stream(), test_clock);
  progress->begin("epoch 3/5", 4, 0);
  for (int i = 0; i < 4; ++i) {
    if (i == 1) pass(std::chrono::milliseconds(110));
    progress->step(0.25);
  }
  progress->end(metrics());
  const std::string text = written();
  EXPECT_THAT(text, StartsWith("\repoch 3/5 [                        ] 0%  0/4"));
  EXPECT_THAT(text, HasSubstr("epoch 3/5 [============            ] 50%  2/4  loss 0.25  "));
  EXPECT_THAT(text, HasSubstr(" left\x1b[K"));
  EXPECT_THAT(text, MatchesRegex(".*\r\x1b\\[Kepoch 3/5  4/4  0:00  [0-9.e+]+ steps/s  train/loss=0.5312\n"));
}

TEST_F(ProgressTest, BarIsRedrawnAtMostTenTimesASecond) {
  const auto progress = make_progress("bar", stream(), test_clock);
  progress->begin("epoch 1/1", 1000000, 0);
  for (int i = 0; i < 2000; ++i) {
    pass(std::chrono::milliseconds(1));
    progress->step(0.1);
  }
  const std::string text = written();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\r'), 1 + 20) << "two seconds";
}

TEST_F(ProgressTest, PlainWritesALineEvery30SecondsOfALongEpoch) {
  const auto progress = make_progress("plain", stream(), test_clock);
  progress->begin("epoch 1/1", 100, 0);
  for (int i = 0; i < 61; ++i) {
    pass(std::chrono::seconds(1));
    progress->step(0.1);
  }
  const std::string text = written();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2);
  EXPECT_THAT(text, StartsWith("epoch 1/1  30/100  loss 0.1  1 steps/s  1:10 left\n"));
}

TEST_F(ProgressTest, StepsThatWereDoneBeforeCountForThePlaceAndNotForTheSpeed) {
  const auto progress = make_progress("bar", stream(), test_clock);
  progress->begin("epoch 1/2", 1000, 500);
  pass(std::chrono::milliseconds(110));
  progress->step(1.0);
  const std::string text = written();
  EXPECT_THAT(text, HasSubstr("] 50%  501/1000"));
  const size_t speed = text.rfind("loss 1  ");
  ASSERT_NE(speed, std::string::npos);
  EXPECT_LT(std::stod(text.substr(speed + 8)), 10.0) << "one step in 110 ms";
}

TEST_F(ProgressTest, AnUnknownLengthHasNoBar) {
  const auto progress = make_progress("bar", stream(), test_clock);
  progress->begin("validation", std::nullopt, 0);
  pass(std::chrono::milliseconds(110));
  progress->step(2.0);
  progress->end({});
  const std::string text = written();
  EXPECT_THAT(text, HasSubstr("validation  1 step  loss 2  "));
  EXPECT_THAT(text, Not(HasSubstr("[=")));
  EXPECT_THAT(text, Not(HasSubstr(" left")));
}

TEST_F(ProgressTest, ClearLineTakesTheBarAwayOnce) {
  const auto progress = make_progress("bar", stream(), test_clock);
  progress->begin("epoch 1/1", 10, 0);
  progress->clear_line();
  progress->clear_line();
  EXPECT_THAT(written(), EndsWith("0/10\x1b[K\r\x1b[K"));
}

TEST_F(ProgressTest, ABarThatIsLeftBehindIsTakenAway) {
  make_progress("bar", stream(), test_clock)->begin("epoch 1/1", 10, 0);
  EXPECT_THAT(written(), EndsWith("\r\x1b[K"));
}

TEST_F(ProgressTest, PlainWritesALineWhenSomethingEnds) {
  const auto progress = make_progress("plain", stream(), test_clock);
  progress->begin("epoch 1/2", 3, 0);
  for (int i = 0; i < 3; ++i) progress->step(1.0);
  progress->clear_line();
  progress->end(metrics());
  progress->begin("validation", std::nullopt, 0);
  progress->step(1.0);
  progress->step(1.0);
  progress->end({});
  EXPECT_THAT(written(), MatchesRegex("epoch 1/2  3/3  0:00  [0-9.e+]+ steps/s  train/loss=0.5312\nvalidation  2 steps  0:00  [0-9.e+]+ steps/s\n"));
}

TEST_F(ProgressTest, OffWritesNothing) {
  const auto progress = make_progress("off", stream(), test_clock);
  progress->begin("epoch 1/2", 3, 0);
  progress->step(1.0);
  progress->end(metrics());
  EXPECT_THAT(written(), IsEmpty());
}

TEST_F(ProgressTest, AutoDrawsNoBarIntoAFile) {
  const auto progress = make_progress("auto", stream(), test_clock);
  progress->begin("epoch 1/2", 3, 0);
  EXPECT_THAT(written(), IsEmpty());
}

TEST_F(ProgressTest, AnotherModeIsRefused) {
  EXPECT_THAT([&] { (void)make_progress("fancy", stream(), test_clock); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("auto, bar, plain or off, got 'fancy'")));
}

}  // namespace
}  // namespace marlin
