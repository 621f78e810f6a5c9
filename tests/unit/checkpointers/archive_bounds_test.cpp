// Small files that ask for much: memory and time stay in proportion to the file, whatever it refers back to.
#include <gmock/gmock.h>

#include <chrono>

#include "archive_test_util.h"
#include "marlin/sdk/text.h"
#include "throws_error.h"

namespace marlin {
namespace {

using test::Folder;
using test::make_zip;
using test::pickled_text;
using test::records_of;
using ::testing::HasSubstr;
using testing::ThrowsError;

constexpr size_t kPickleSize = 1 << 20;
constexpr const char* kTooMuch = "data.pkl: refers back to so many values that it would take too much memory";

class ArchiveBoundsTest : public ::testing::Test {
 protected:
  // The pickle: its beginning, which leaves a long value in memo 0, and then `again`, which refers to it, up to kPickleSize.
  void expect_too_much(std::string pickle, std::string_view again) {
    pickle += std::string("q\0", 2);
    while (pickle.size() < kPickleSize) pickle += again;
    const auto file = folder_.put("small.pt", make_zip(records_of("\x80\x02" + pickle + ".")));
    EXPECT_THAT([&] { return read_archive(file); }, ThrowsError(Errc::kCorrupt, HasSubstr(kTooMuch)));
  }
  static std::string long_text() { return pickled_text(std::string(kPickleSize / 2, 'x')); }
  static std::string storage_id(const std::string& key) { return "(" + pickled_text("storage") + "ctorch\nByteStorage\n" + key + pickled_text("cpu") + "K\1t"; }

  Folder folder_;
};

// What is left over at the end is an error, but by then it has been made.
TEST_F(ArchiveBoundsTest, ManyDictsWithTheSameLongKeyAreRefused) { expect_too_much(long_text(), {"}h\0Ns", 5}); }

TEST_F(ArchiveBoundsTest, ManyStoragesWithTheSameLongKeyAreRefused) { expect_too_much(storage_id(long_text()), {"h\0Q", 3}); }

TEST_F(ArchiveBoundsTest, ManyTensorsWithTheSameLongKeyAreRefused) {
  expect_too_much("ctorch._utils\n_rebuild_tensor_v2\nq\1(" + storage_id(long_text()) + "Q" + std::string("K\0))\x89Nt", 7), {"h\1h\0R", 5});
}

TEST_F(ArchiveBoundsTest, ManySizesOfTheSameLongTupleAreRefused) {
  std::string ones;
  for (size_t i = 0; i < kPickleSize / 4; ++i) ones += "K\1";
  expect_too_much("ctorch\nSize\nq\1(" + ones + "t\x85", {"h\1h\0R", 5});
}

TEST_F(ArchiveBoundsTest, ManyOrderedDictsWithTheSameManyAttributesAreRefused) {
  std::string entries;
  for (int i = 0; entries.size() < kPickleSize / 2; ++i) entries += pickled_text(std::to_string(i)) + "N";
  expect_too_much("ccollections\nOrderedDict\nq\1}(" + entries + "u", {"h\1)Rh\0b", 7});
}

TEST_F(ArchiveBoundsTest, LongPathsToTheSameTensorAreRefused) {
  const std::string tensor = "ctorch._utils\n_rebuild_tensor_v2\n(" + storage_id(pickled_text("0")) + "Q" + std::string("K\0))\x89Nt", 7) + "R";
  std::string leaves = "}(K\1" + tensor + std::string("q\0", 2);
  for (int i = 2; i < 1000; ++i) leaves += concat("M", static_cast<char>(i & 255), static_cast<char>(i >> 8), std::string("h\0", 2));
  const std::string inner = leaves + "u";
  std::string outer = "}" + pickled_text(std::string(20000, 'k')) + "q\1";
  for (int i = 0; i < 20; ++i) outer += "}h\1";
  std::vector<test::HandMadeRecord> records = records_of("\x80\x02" + outer + inner + std::string(21, 's') + ".");
  records[2].data.resize(1);
  const auto file = folder_.put("paths.pt", make_zip(records));
  EXPECT_THAT([&] { return read_archive(file); }, ThrowsError(Errc::kCorrupt, HasSubstr("data.pkl: its tensors have paths that would take too much memory")));
}

// In the square of the number of keys it would be a minute.
TEST_F(ArchiveBoundsTest, ACommitRecordWithManyKeysIsReadInTime) {
  std::string json = R"({"format_version": 1, "index": 7, "epoch": 0, "global_step": 0)";
  for (int i = 0; json.size() < 2 * kPickleSize; ++i) json += concat(R"(, ")", i, R"(": 0)");
  std::vector<test::HandMadeRecord> records = records_of("\x80\x02}.");
  records.push_back({"a/marlin.json", json + "}"});
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(read_archive(folder_.put("keys.pt", make_zip(records))).record->index, 7);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

}  // namespace
}  // namespace marlin
