// Every input of the fuzzer's corpus, and every one that once broke the reader, through the reader as users have it.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "../../fuzz/archive_input.h"
#include "archive_test_util.h"
#include "marlin/checkpointers/archive_reader.h"
#include "marlin/sdk/error.h"

namespace marlin {
namespace {

std::vector<std::filesystem::path> inputs_in(const char* folder) {
  std::vector<std::filesystem::path> files;
  const std::filesystem::path path = std::filesystem::path(MARLIN_SOURCE_DIR) / "tests/fuzz" / folder;
  std::error_code error;  // no input has broken the reader as long as there is no folder of them
  for (const auto& entry : std::filesystem::directory_iterator(path, error)) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

// The first and the last element of every tensor can be read.
int64_t touch(ArchiveReader& reader) {
  int64_t sum = 0;
  for (const TensorInfo& info : reader.tensors()) {
    const at::Tensor tensor = reader.tensor(info.path);
    int64_t last = 0;
    for (int64_t i = 0; i < tensor.dim(); ++i) last += std::max<int64_t>(tensor.size(i) - 1, 0) * tensor.stride(i);
    if (tensor.numel() == 0) continue;
    const auto item_size = static_cast<int64_t>(tensor.itemsize());
    EXPECT_LE((tensor.storage_offset() + last + 1) * item_size, static_cast<int64_t>(tensor.storage().nbytes())) << info.path;
    const auto* bytes = static_cast<const char*>(tensor.const_data_ptr());
    sum += bytes[0] + bytes[(last + 1) * item_size - 1];
  }
  return sum;
}

class FuzzCorpusTest : public ::testing::Test {
 protected:
  // True: it is told. Else it was read, to the last tensor.
  bool is_told(const std::filesystem::path& input, Verify verify) {
    const std::string bytes = test::read_bytes(input);
    const std::filesystem::path file = folder_.put("input.pt", fuzz::file_of({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}));
    try {
      ArchiveReader reader(file, verify);
      (void)touch(reader);
      (void)reader.state();
      return false;
    } catch (const Error& error) {
      const std::string text = error.what();
      EXPECT_TRUE(error.code() == Errc::kCorrupt || error.code() == Errc::kUnsupported) << to_string(error.code()) << ": " << text;
      EXPECT_EQ(text.rfind(file.string() + ": ", 0), 0U) << "a message begins with the file: " << text;
      EXPECT_NE(text.find(": ", file.string().size() + 2), std::string::npos) << "a message says where and why: " << text;
      EXPECT_EQ(text.find('\n'), std::string::npos) << "a message is one line: " << text;
      return true;
    }
  }

  test::Folder folder_;
};

constexpr Verify kAllWays[] = {Verify::kFull, Verify::kLazy, Verify::kOff};

TEST_F(FuzzCorpusTest, SeedsAreReadWholeButForThoseNamedTold) {
  const auto seeds = inputs_in("corpus");
  EXPECT_GE(seeds.size(), 10U);
  for (const auto& seed : seeds) {
    for (const Verify verify : kAllWays) EXPECT_EQ(is_told(seed, verify), seed.filename().string().starts_with("told_")) << seed.filename();
  }
}

TEST_F(FuzzCorpusTest, InputsThatOnceBrokeTheReaderAreReadOrTold) {
  for (const auto& input : inputs_in("regressions")) {
    for (const Verify verify : kAllWays) (void)is_told(input, verify);
    if (HasFailure()) FAIL() << input.filename();
  }
}

}  // namespace
}  // namespace marlin
