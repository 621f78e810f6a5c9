#include "marlin/core/progress.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "expect_error.h"

namespace marlin {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::MatchesRegex;
using ::testing::Not;
using ::testing::StartsWith;
using testing::expect_error;

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
  const auto progress = make_progress("bar", stream());
  progress->begin("epoch 3/5", 4, 0);
  for (int i = 0; i < 4; ++i) {
    if (i == 1) std::this_thread::sleep_for(std::chrono::milliseconds(110));
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
  const auto progress = make_progress("bar", stream());
  const auto begin = std::chrono::steady_clock::now();
  progress->begin("epoch 1/1", 1000000, 0);
  for (int i = 0; i < 200000; ++i) progress->step(0.1);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const std::string text = written();
  EXPECT_LE(std::count(text.begin(), text.end(), '\r'), 1 + static_cast<int64_t>(seconds * 10.0));
}

TEST_F(ProgressTest, AStepWithNothingToDrawTakesWellUnderAMicrosecond) {
  for (const char* mode : {"bar", "plain", "off"}) {
    const auto progress = make_progress(mode, stream());
    progress->begin("epoch 1/1", 1000000, 0);
    constexpr int kSteps = 20000;
    double best = 1.0;
    for (int round = 0; round < 10; ++round) {
      const auto begin = std::chrono::steady_clock::now();
      for (int i = 0; i < kSteps; ++i) progress->step(0.1);
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / kSteps);
    }
    std::printf("step() of %s: %.0f ns\n", mode, best * 1e9);
    EXPECT_LT(best, 0.5e-6) << mode;
  }
}

TEST_F(ProgressTest, StepsThatWereDoneBeforeCountForThePlaceAndNotForTheSpeed) {
  const auto progress = make_progress("bar", stream());
  progress->begin("epoch 1/2", 1000, 500);
  std::this_thread::sleep_for(std::chrono::milliseconds(110));
  progress->step(1.0);
  const std::string text = written();
  EXPECT_THAT(text, HasSubstr("] 50%  501/1000"));
  const size_t speed = text.rfind("loss 1  ");
  ASSERT_NE(speed, std::string::npos);
  EXPECT_LT(std::stod(text.substr(speed + 8)), 10.0) << "one step in 110 ms";
}

TEST_F(ProgressTest, AnUnknownLengthHasNoBar) {
  const auto progress = make_progress("bar", stream());
  progress->begin("validation", std::nullopt, 0);
  std::this_thread::sleep_for(std::chrono::milliseconds(110));
  progress->step(2.0);
  progress->end({});
  const std::string text = written();
  EXPECT_THAT(text, HasSubstr("validation  1 step  loss 2  "));
  EXPECT_THAT(text, Not(HasSubstr("[=")));
  EXPECT_THAT(text, Not(HasSubstr(" left")));
}

TEST_F(ProgressTest, ClearLineTakesTheBarAwayOnce) {
  const auto progress = make_progress("bar", stream());
  progress->begin("epoch 1/1", 10, 0);
  progress->clear_line();
  progress->clear_line();
  EXPECT_THAT(written(), EndsWith("0/10\x1b[K\r\x1b[K"));
}

TEST_F(ProgressTest, ABarThatIsLeftBehindIsTakenAway) {
  make_progress("bar", stream())->begin("epoch 1/1", 10, 0);
  EXPECT_THAT(written(), EndsWith("\r\x1b[K"));
}

TEST_F(ProgressTest, PlainWritesALineWhenSomethingEnds) {
  const auto progress = make_progress("plain", stream());
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
  const auto progress = make_progress("off", stream());
  progress->begin("epoch 1/2", 3, 0);
  progress->step(1.0);
  progress->end(metrics());
  EXPECT_THAT(written(), IsEmpty());
}

TEST_F(ProgressTest, AutoDrawsNoBarIntoAFile) {
  const auto progress = make_progress("auto", stream());
  progress->begin("epoch 1/2", 3, 0);
  EXPECT_THAT(written(), IsEmpty());
}

TEST_F(ProgressTest, AnotherModeIsRefused) {
  expect_error(Errc::kInvalidArgument, "auto, bar, plain or off, got 'fancy'", [&] { (void)make_progress("fancy", stream()); });
}

}  // namespace
}  // namespace marlin
