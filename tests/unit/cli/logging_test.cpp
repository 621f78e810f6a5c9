#include "marlin/core/logging.h"

#include <gmock/gmock.h>

#include <functional>
#include <thread>
#include <vector>

#include "marlin/sdk/error.h"

namespace marlin {
namespace {

using ::testing::MatchesRegex;

std::string printed(LogLevel level, const std::function<void(Logger&)>& call) {
  testing::internal::CaptureStderr();
  const auto logger = make_console_logger(level);
  call(*logger);
  return testing::internal::GetCapturedStderr();
}

TEST(LoggingTest, ALineSaysWhenAndHowSerious) {
  EXPECT_THAT(printed(LogLevel::kDebug, [](Logger& log) { log.info("epoch ", 3, " {}"); }), MatchesRegex(R"(\[..:..:..\] \[info\] epoch 3 \{\}
)"));
  EXPECT_THAT(printed(LogLevel::kDebug, [](Logger& log) { log.warning("x"); }), MatchesRegex(R"(\[..:..:..\] \[warning\] x
)"));
}

TEST(LoggingTest, LinesBelowTheLevelAreNotWritten) {
  const auto all = [](Logger& log) {
    log.debug("a");
    log.info("b");
    log.warning("c");
    log.error("d");
  };
  EXPECT_THAT(printed(LogLevel::kWarning, all), MatchesRegex(".*warning. c\n.*error. d\n"));
  EXPECT_EQ(printed(LogLevel::kOff, all), "");
}

TEST(LoggingTest, OneCallIsOneLineWhateverTheText) {
  EXPECT_THAT(printed(LogLevel::kInfo, [](Logger& log) { log.info("a\nb\r\x1b[31m\tc"); }), MatchesRegex(".*a\\\\nb\\\\r\\\\x1b.31m\tc\n"));
}

TEST(LoggingTest, LinesOfSeveralThreadsDoNotMix) {
  const std::string text = printed(LogLevel::kInfo, [](Logger& log) {
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&log] {
        for (int i = 0; i < 100; ++i) log.info("abcdefgh");
      });
    }
    for (std::thread& thread : threads) thread.join();
  });
  size_t lines = 0;
  for (size_t begin = 0, end = 0; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1, ++lines) {
    EXPECT_EQ(text.substr(begin, end - begin).substr(11), "[info] abcdefgh");
  }
  EXPECT_EQ(lines, 400U);
}

TEST(LoggingTest, LevelsAreReadInAnyCaseAndOthersAreRefused) {
  EXPECT_EQ(parse_log_level("DEBUG"), LogLevel::kDebug);
  EXPECT_EQ(parse_log_level("info"), LogLevel::kInfo);
  EXPECT_EQ(parse_log_level("Warning"), LogLevel::kWarning);
  EXPECT_EQ(parse_log_level("eRROR"), LogLevel::kError);
  EXPECT_EQ(parse_log_level("off"), LogLevel::kOff);
  try {
    (void)parse_log_level("warn");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::kInvalidArgument);
    EXPECT_STREQ(error.what(), "a log level must be one of DEBUG, INFO, WARNING, ERROR, OFF, got 'warn'");
  }
}

}  // namespace
}  // namespace marlin
