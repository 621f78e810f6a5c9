#include "marlin/checkpointers/archive_reader.h"

#include <gmock/gmock.h>
#include <torch/torch.h>

#include <random>

#include "archive_test_util.h"
#include "marlin/sdk/text.h"
#include "throws_error.h"

namespace marlin {
namespace {

using test::archive_bytes;
using test::Folder;
using testing::ThrowsError;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Large enough for two threads.
StateDict large_state() {
  torch::manual_seed(5);
  const at::Tensor shared = torch::randn({1000, 1000});
  return {{"model", StateDict{{"fc.weight", shared}, {"fc.bias", torch::randn({500000})}, {"tied", shared.slice(0, 3, 7)}}},
          {"list", List{{torch::arange(600000), 7, torch::empty({0})}}},
          {"epoch", 3}};
}

class ArchiveReaderTest : public ::testing::Test {
 protected:
  ArchiveReaderTest() : file_(folder_.put("a.pt", archive_bytes(state_))) {}

  // Flips a bit in the middle of what `tensor` looks at.
  void damage(const at::Tensor& tensor) {
    std::string bytes = test::read_bytes(file_);
    const size_t at = bytes.find(std::string_view(static_cast<const char*>(tensor.const_data_ptr()), 64));
    ASSERT_NE(at, std::string::npos);
    bytes[at + tensor.nbytes() / 2] = static_cast<char>(bytes[at + tensor.nbytes() / 2] ^ 4);
    folder_.put("a.pt", bytes);
  }
  [[nodiscard]] const at::Tensor& saved(const char* name) const { return state_.at("model").as_dict().at(name).as_tensor(); }

  Folder folder_;
  StateDict state_ = large_state();
  std::filesystem::path file_;
};

TEST_F(ArchiveReaderTest, NamesTensorsWithoutReadingThem) {
  const ArchiveReader reader(file_, Verify::kOff);
  std::vector<std::string> told;
  for (const TensorInfo& info : reader.tensors()) told.push_back(concat(info.path, " ", info.dtype, " ", at::IntArrayRef(info.sizes), " ", info.record));
  EXPECT_THAT(told, ElementsAre("model.fc.weight Float [1000, 1000] data/0", "model.fc.bias Float [500000] data/1", "model.tied Float [4, 1000] data/0",
                                "list.0 Long [600000] data/2", "list.2 Float [0] data/3"));
  EXPECT_EQ(reader.verified(), Verified::kNothing);
  ASSERT_TRUE(reader.record());
  EXPECT_EQ(reader.record()->records.size(), 10U);
}

TEST_F(ArchiveReaderTest, GivesOneTensorOrAll) {
  for (const Verify verify : {Verify::kFull, Verify::kLazy, Verify::kOff}) {
    ArchiveReader reader(file_, verify);
    EXPECT_TRUE(reader.tensor("model.fc.weight").equal(saved("fc.weight")));
    EXPECT_TRUE(reader.tensor("model.tied").is_alias_of(reader.tensor("model.fc.weight")));
    EXPECT_TRUE(equal(reader.state(), state_));
    EXPECT_THAT([&] { return reader.tensor("model.nothing"); }, ThrowsError(Errc::kNotFound, HasSubstr("a.pt: holds no tensor 'model.nothing'")));
    EXPECT_THAT([&] { return reader.tensor("epoch"); }, ThrowsError(Errc::kNotFound, HasSubstr("a.pt: holds no tensor 'epoch'")));
  }
}

TEST_F(ArchiveReaderTest, FullFindsDamageWhenItOpens) {
  EXPECT_EQ(ArchiveReader(file_).verified(), Verified::kHashes);
  damage(saved("fc.bias"));
  EXPECT_THAT([&] { return ArchiveReader(file_); }, ThrowsError(Errc::kCorrupt, HasSubstr("a.pt: data/1: its bytes do not match their hash")));
  EXPECT_THAT([&] { return read_archive(file_); }, ThrowsError(Errc::kCorrupt, HasSubstr("a.pt: data/1: its bytes do not match their hash")));
}

TEST_F(ArchiveReaderTest, LazyFindsDamageInWhatIsTaken) {
  damage(saved("fc.bias"));
  ArchiveReader reader(file_, Verify::kLazy);
  EXPECT_EQ(reader.verified(), Verified::kAsTaken);
  EXPECT_TRUE(reader.tensor("model.fc.weight").equal(saved("fc.weight")));
  EXPECT_TRUE(reader.tensor("list.0").equal(torch::arange(600000)));
  for (int i = 0; i < 2; ++i) {
    EXPECT_THAT([&] { return reader.tensor("model.fc.bias"); }, ThrowsError(Errc::kCorrupt, HasSubstr("a.pt: data/1: its bytes do not match their hash")));
    EXPECT_THAT([&] { return reader.state(); }, ThrowsError(Errc::kCorrupt, HasSubstr("a.pt: data/1: its bytes do not match their hash")));
  }
  const StateDict other = {{"model", StateDict{{"tied", torch::zeros({4, 1000})}}}};
  reader.load_into(other);
  EXPECT_TRUE(other.at("model").as_dict().at("tied").as_tensor().equal(saved("tied")));
  EXPECT_THAT([&] { return read_archive(file_, Verify::kLazy); }, ThrowsError(Errc::kCorrupt, HasSubstr("data/1")));
}

TEST_F(ArchiveReaderTest, OffDoesNotLookAtTensorsButAtAllElse) {
  damage(saved("fc.bias"));
  ArchiveReader reader(file_, Verify::kOff);
  EXPECT_FALSE(equal(reader.state(), state_));
  std::string bytes = test::read_bytes(file_);
  bytes[bytes.find("epoch") + 1] ^= 1;
  folder_.put("a.pt", bytes);
  EXPECT_THAT([&] { return ArchiveReader(file_, Verify::kOff); }, ThrowsError(Errc::kCorrupt, HasSubstr("a.pt: data.pkl: its bytes do not match their hash")));
}

TEST_F(ArchiveReaderTest, WithoutACommitRecordTheChecksumsCount) {
  const std::filesystem::path file = folder_.put("python.pt", test::make_zip(test::records_of("\x80\x02" + test::pickled_dict_of_tensor(0, {4}, {1}))));
  EXPECT_EQ(ArchiveReader(file).verified(), Verified::kChecksums);
  EXPECT_FALSE(ArchiveReader(file).record());
  std::string bytes = test::read_bytes(file);
  bytes[bytes.find(std::string(16, '\7')) + 3] ^= 1;
  folder_.put("python.pt", bytes);
  EXPECT_THAT([&] { return ArchiveReader(file); }, ThrowsError(Errc::kCorrupt, HasSubstr("data/0: its bytes do not match their checksum")));
  ArchiveReader lazy(file, Verify::kLazy);
  EXPECT_THAT([&] { return lazy.tensor("w"); }, ThrowsError(Errc::kCorrupt, HasSubstr("data/0: its bytes do not match their checksum")));
  EXPECT_NO_THROW((void)ArchiveReader(file, Verify::kOff).tensor("w"));
}

TEST_F(ArchiveReaderTest, LoadsIntoTensorsThatExist) {
  const at::Tensor memory = torch::zeros({2000, 1000});
  const at::Tensor weight = memory.slice(0, 0, 2000, 2).requires_grad_();  // not contiguous
  const StateDict live = {{"list", List{{torch::zeros({600000}, at::kLong)}}}, {"model", StateDict{{"tied", torch::zeros({4, 1000})}, {"fc.weight", weight}}}, {"own", 5}};
  ArchiveReader(file_).load_into(live);
  EXPECT_TRUE(weight.equal(saved("fc.weight")));
  EXPECT_TRUE(memory.slice(0, 1, 2000, 2).equal(torch::zeros({1000, 1000})));
  EXPECT_TRUE(weight.requires_grad());
  EXPECT_TRUE(live.at("model").as_dict().at("tied").as_tensor().equal(saved("tied")));
  EXPECT_TRUE(live.at("list").as_items()[0].as_tensor().equal(torch::arange(600000)));
}

TEST_F(ArchiveReaderTest, LoadsAllOrNothing) {
  const at::Tensor bias = torch::zeros({500000});
  const auto with = [&](const char* key, at::Tensor tensor) { return StateDict{{"model", StateDict{{"fc.bias", bias}, {key, std::move(tensor)}}}}; };
  ArchiveReader reader(file_);
  EXPECT_THAT([&] { reader.load_into(with("nothing", torch::ones({1}))); }, ThrowsError(Errc::kMismatch, HasSubstr("a.pt: is of another model: model.nothing is missing")));
  EXPECT_THAT([&] { reader.load_into(with("fc.weight", torch::ones({1000, 1000}, at::kDouble))); }, ThrowsError(Errc::kMismatch, HasSubstr("model.fc.weight is Float [1000, 1000], not Double [1000, 1000]")));
  EXPECT_THAT([&] { reader.load_into(with("tied", torch::ones({1000}))); }, ThrowsError(Errc::kMismatch, HasSubstr("model.tied is Float [4, 1000], not Float [1000]")));
  EXPECT_THAT([&] { reader.load_into(with("tied", at::Tensor())); }, ThrowsError(Errc::kMismatch, HasSubstr("model.tied is Float [4, 1000], not undefined")));
  EXPECT_THAT([&] { reader.load_into({{"list", List{{torch::zeros({600000}, at::kLong), torch::ones({1})}}}}); }, ThrowsError(Errc::kMismatch, HasSubstr("list.1 is missing")));
  damage(saved("fc.weight"));
  ArchiveReader lazy(file_, Verify::kLazy);
  EXPECT_THAT([&] { lazy.load_into(with("fc.weight", torch::ones({1000, 1000}))); }, ThrowsError(Errc::kCorrupt, HasSubstr("data/0")));
  EXPECT_TRUE(bias.equal(torch::zeros({500000}))) << "nothing was copied by any of these";
}

}  // namespace
}  // namespace marlin
