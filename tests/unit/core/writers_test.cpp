#include "marlin/core/writers.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>

#include "recording_logger.h"
#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::HasSubstr;
using testing::ThrowsError;

MetricsEvent event_of(MetricsEvent::Kind kind, const std::string& name, double value) {
  MetricsEvent event{.kind = kind, .epoch = 1, .global_step = 23, .metrics = {}};
  event.metrics.set(name, value);
  return event;
}

class WritersTest : public ::testing::Test {
 protected:
  WritersTest() {
    std::string name = (std::filesystem::temp_directory_path() / "marlin_writers_XXXXXX").string();
    dir_ = mkdtemp(name.data());
  }
  ~WritersTest() override { std::filesystem::remove_all(dir_); }

  std::string text_of(const std::filesystem::path& file) const {
    std::ifstream in(file);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  std::filesystem::path dir_;
};

TEST_F(WritersTest, StdoutHasALineForEpochsAndValidationsWithShortNumbers) {
  std::FILE* file = std::fopen((dir_ / "out").c_str(), "w");
  const auto writer = make_stdout_writer(file);
  writer->write(event_of(MetricsEvent::Kind::kStep, "train/loss", 1.0));
  MetricsEvent epoch = event_of(MetricsEvent::Kind::kEpoch, "train/loss", 0.53120001);
  epoch.metrics.set("train/lr", 1e-7);
  writer->write(epoch);
  writer->write(event_of(MetricsEvent::Kind::kValidation, "val/accuracy", 2.0 / 3.0));
  writer->flush();
  EXPECT_EQ(text_of(dir_ / "out"), "epoch=1 global_step=23 train/loss=0.5312 train/lr=1e-07\nepoch=1 global_step=23 val/accuracy=0.666667\n");
  std::fclose(file);
}

TEST_F(WritersTest, JsonlHasAnObjectForEveryEvent) {
  const auto writer = make_jsonl_writer(dir_);
  writer->write(event_of(MetricsEvent::Kind::kStep, "train/loss", 0.1));
  writer->write(event_of(MetricsEvent::Kind::kEpoch, "train/\"odd\"", 3.0));
  writer->flush();
  EXPECT_EQ(text_of(dir_ / "metrics.jsonl"),
            "{\"kind\":\"step\",\"epoch\":1,\"global_step\":23,\"train/loss\":0.1}\n"
            "{\"kind\":\"epoch\",\"epoch\":1,\"global_step\":23,\"train/\\\"odd\\\"\":3.0}\n");
}

TEST_F(WritersTest, JsonlWritesWhatJsonHasNoNumberForAsText) {
  const auto writer = make_jsonl_writer(dir_);
  MetricsEvent event = event_of(MetricsEvent::Kind::kValidation, "a", std::nan(""));
  event.metrics.set("b", std::numeric_limits<double>::infinity());
  event.metrics.set("c", -std::numeric_limits<double>::infinity());
  writer->write(event);
  writer->flush();
  EXPECT_EQ(text_of(dir_ / "metrics.jsonl"),
            "{\"kind\":\"validation\",\"epoch\":1,\"global_step\":23,\"a\":\"NaN\",\"b\":\"Infinity\",\"c\":\"-Infinity\"}\n");
}

TEST_F(WritersTest, JsonlMakesItsFolderWithTheFirstLineOnly) {
  const auto writer = make_jsonl_writer(dir_ / "a" / "b");
  EXPECT_FALSE(std::filesystem::exists(dir_ / "a"));
  writer->flush();
  EXPECT_FALSE(std::filesystem::exists(dir_ / "a"));
  writer->write(event_of(MetricsEvent::Kind::kEpoch, "x", 1.0));
  EXPECT_TRUE(std::filesystem::exists(dir_ / "a" / "b" / "metrics.jsonl"));
}

TEST_F(WritersTest, JsonlIsAskedBeforeTheFirstStepWhetherItCanWrite) {
  std::ofstream(dir_ / "file") << "in the way";
  const auto writer = make_jsonl_writer(dir_ / "file" / "deeper");
  EXPECT_THAT([&] { writer->open(); }, ThrowsError(Errc::kIo, HasSubstr("metrics.jsonl: Not a directory")));
}

TEST_F(WritersTest, JsonlKeepsWhatIsThereAndStartsANewLineAfterHalfOfOne) {
  make_jsonl_writer(dir_)->write(event_of(MetricsEvent::Kind::kEpoch, "x", 1.0));
  make_jsonl_writer(dir_)->write(event_of(MetricsEvent::Kind::kEpoch, "x", 2.0));
  std::ofstream(dir_ / "metrics.jsonl", std::ios::app) << "{\"kind\":\"st";
  make_jsonl_writer(dir_)->write(event_of(MetricsEvent::Kind::kEpoch, "x", 3.0));
  EXPECT_EQ(text_of(dir_ / "metrics.jsonl"),
            "{\"kind\":\"epoch\",\"epoch\":1,\"global_step\":23,\"x\":1.0}\n"
            "{\"kind\":\"epoch\",\"epoch\":1,\"global_step\":23,\"x\":2.0}\n"
            "{\"kind\":\"st\n"
            "{\"kind\":\"epoch\",\"epoch\":1,\"global_step\":23,\"x\":3.0}\n");
}

TEST_F(WritersTest, JsonlSaysWhyItCannotWrite) {
  std::ofstream(dir_ / "file") << "in the way";
  EXPECT_THAT([&] { (void)make_jsonl_writer(dir_ / "file"); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("file' is not a folder")));
  const auto under_a_file = make_jsonl_writer(dir_ / "file" / "deeper");
  EXPECT_THAT([&] { under_a_file->write(event_of(MetricsEvent::Kind::kEpoch, "x", 1.0)); }, ThrowsError(Errc::kIo, HasSubstr("metrics.jsonl: Not a directory")));
  std::filesystem::create_directories(dir_ / "taken" / "metrics.jsonl");
  const auto onto_a_folder = make_jsonl_writer(dir_ / "taken");
  EXPECT_THAT([&] { onto_a_folder->write(event_of(MetricsEvent::Kind::kEpoch, "x", 1.0)); }, ThrowsError(Errc::kIo, HasSubstr("metrics.jsonl: Is a directory")));
}

TEST_F(WritersTest, JsonlReportsAFullDiskAtTheLatestWhenFlushed) {
  std::filesystem::create_symlink("/dev/full", dir_ / "metrics.jsonl");
  const auto writer = make_jsonl_writer(dir_);
  EXPECT_THAT([&] {
    writer->write(event_of(MetricsEvent::Kind::kEpoch, "x", 1.0));
    writer->flush();
  }, ThrowsError(Errc::kIo, HasSubstr("No space left on device")));
}

// ---- positions

MetricsEvent step_event(int64_t step) {
  MetricsEvent event = event_of(MetricsEvent::Kind::kStep, "train/loss", 1.0 / static_cast<double>(step));
  event.global_step = step;
  return event;
}

class PositionsTest : public WritersTest {
 protected:
  void write(Writer& writer, int64_t from, int64_t to) {
    for (int64_t step = from; step <= to; ++step) writer.write(step_event(step));
    writer.flush();
  }
  [[nodiscard]] std::string record() const { return text_of(dir_ / "metrics.jsonl"); }
  [[nodiscard]] std::string aside() const { return text_of(dir_ / "metrics.superseded.jsonl"); }
  void append(const std::string& text) const { std::ofstream(dir_ / "metrics.jsonl", std::ios::app) << text; }

  testing::RecordingLogger logger_;
};

TEST_F(PositionsTest, GoesBackToWhereTheCheckpointWasAndKeepsWhatCameAfter) {
  StateDict position;
  std::string straight;
  {
    const auto writer = make_jsonl_writer(dir_);
    write(*writer, 1, 200);  // more than a block of a stream
    position = writer->get_state();
    straight = record();
    write(*writer, 201, 300);
  }
  const std::string later = record().substr(straight.size());
  const auto writer = make_jsonl_writer(dir_);
  writer->open();
  writer->update_state(position, logger_);
  EXPECT_EQ(record(), straight);
  EXPECT_EQ(aside(), later);
  write(*writer, 201, 300);
  EXPECT_EQ(record(), straight + later);
  EXPECT_TRUE(logger_.warnings().empty());
  EXPECT_EQ(logger_.lines(LogLevel::kInfo).size(), 1u);
}

TEST_F(PositionsTest, HalfALineOfAKilledRunLeavesNoTrace) {
  const auto first = make_jsonl_writer(dir_);
  write(*first, 1, 3);
  const StateDict position = first->get_state();
  const std::string straight = record();
  append("{\"kind\":\"step\",\"epo");
  const auto writer = make_jsonl_writer(dir_);
  writer->open();
  writer->update_state(position, logger_);
  write(*writer, 4, 4);
  EXPECT_EQ(record().substr(0, straight.size()), straight);
  EXPECT_EQ(record().substr(straight.size()).rfind("{\"kind\":\"step\",\"epoch\":1,\"global_step\":4,", 0), 0u) << "no blank line before it";
  EXPECT_EQ(aside(), "{\"kind\":\"step\",\"epo\n");
}

TEST_F(PositionsTest, APositionIsTrueEvenIfTheProcessIsKilledRightAfter) {
  const auto writer = make_jsonl_writer(dir_);
  writer->write(step_event(1));
  const StateDict position = writer->get_state();
  EXPECT_EQ(static_cast<int64_t>(record().size()), position.at("bytes").as_int()) << "nothing is left in the stream";
}

TEST_F(PositionsTest, RecordsOfAnotherRunStay) {
  const auto first = make_jsonl_writer(dir_);
  write(*first, 1, 5);
  const StateDict position = first->get_state();
  write(*make_jsonl_writer(dir_), 1, 9);  // another run, in the same folder
  const std::string before = record();
  const auto writer = make_jsonl_writer(dir_);
  writer->open();
  writer->update_state(position, logger_);
  EXPECT_EQ(record(), before);
  EXPECT_EQ(logger_.warnings().size(), 1u);
}

TEST_F(PositionsTest, AFileThatIsNotAsItWasIsAppendedToWithOneWarning) {
  const auto first = make_jsonl_writer(dir_);
  write(*first, 1, 5);
  const StateDict position = first->get_state();
  const std::string whole = record();
  for (const std::string& changed : {whole.substr(0, whole.size() / 2), "x" + whole.substr(1)}) {
    std::ofstream(dir_ / "metrics.jsonl", std::ios::trunc) << changed;
    testing::RecordingLogger logger;
    const auto writer = make_jsonl_writer(dir_);
    writer->open();
    writer->update_state(position, logger);
    EXPECT_EQ(record().rfind(changed, 0), 0u);
    EXPECT_EQ(logger.warnings().size(), 1u);
    EXPECT_EQ(aside(), "");
  }
}

TEST_F(PositionsTest, ANewFolderIsNoWarning) {
  const auto writer = make_jsonl_writer(dir_ / "new");
  writer->open();
  writer->update_state({{"bytes", 100}, {"hash", "0"}}, logger_);
  EXPECT_TRUE(logger_.warnings().empty());
}

}  // namespace
}  // namespace marlin
