// Files that are broken, hostile, or of another kind: told apart, never crashed on, never taken for whole.
#include <gmock/gmock.h>
#include <torch/torch.h>

#include <functional>
#include <random>

#include "archive_test_util.h"
#include "marlin/checkpointers/archive.h"
#include "marlin/checkpointers/default_checkpointer.h"
#include "marlin/sdk/text.h"
#include "throws_error.h"

namespace marlin {
namespace {

using test::archive_bytes;
using test::Folder;
using test::HandMadeRecord;
using test::make_zip;
using test::pickled_dict_of_tensor;
using test::pickled_text;
using test::records_of;
using ::testing::HasSubstr;
using testing::ThrowsError;

StateDict small_state() {
  StateDict model = {{"weight", torch::arange(12.).reshape({3, 4})}, {"steps", torch::tensor(7)}};
  model.ordered_dict = true;
  model.attributes = std::make_shared<const StateDict>(StateDict{{"_metadata", StateDict{{"", StateDict{{"version", 1}}}}}});
  return {{"model", model}, {"lr", 0.1}, {"betas", Tuple{{0.9, 0.999}}}, {"names", List{{"a", "b"}}}, {3, nullptr}, {"empty", torch::empty({0})}};
}

const CommitRecord kRecord = {.kind = "full", .unit = "epoch", .index = 4, .epoch = 4, .global_step = 400, .cause = "period", .run_id = "r1"};

// Reads it; true: it is told as unusable. What is read instead must be what was written.
bool is_told(const std::filesystem::path& file, const StateDict& root) {
  try {
    const Archive read = read_archive(file);
    EXPECT_TRUE(equal(read.root, root)) << "a changed file was taken for whole, and its values differ";
    const bool same_record = read.record && read.record->index == kRecord.index && read.record->run_id == kRecord.run_id;
    EXPECT_TRUE(same_record) << "the commit record was lost or changed";
    return false;
  } catch (const Error& error) {
    const bool expected = error.code() == Errc::kCorrupt || error.code() == Errc::kUnsupported || error.code() == Errc::kMismatch;
    EXPECT_TRUE(expected) << to_string(error.code()) << ": " << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << "a message is one line: " << error.what();
    EXPECT_EQ(std::string(error.what()).rfind(file.string() + ": ", 0), 0U) << "a message begins with the file: " << error.what();
    return true;
  }
}

TEST(ArchiveDamageTest, EveryTruncationIsCorrupt) {
  const Folder folder;
  const std::string whole = archive_bytes(small_state(), kRecord);
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_THAT([&] { return read_archive(folder.put("cut.pt", whole.substr(0, size))); }, ThrowsError(Errc::kCorrupt, HasSubstr("cut.pt: ")));
    if (HasFailure()) FAIL() << "cut to " << size << " bytes";
  }
}

TEST(ArchiveDamageTest, EveryFlippedBitIsToldOrDoesNoHarm) {
  const Folder folder;
  const StateDict state = small_state();
  const std::string whole = archive_bytes(state, kRecord);
  size_t told = 0;
  for (size_t bit = 0; bit < whole.size() * 8; ++bit) {
    std::string changed = whole;
    changed[bit / 8] = static_cast<char>(changed[bit / 8] ^ (1 << (bit % 8)));
    told += is_told(folder.put("flip.pt", changed), state) ? 1 : 0;
    if (HasFailure()) FAIL() << "bit " << bit % 8 << " of byte " << bit / 8;
  }
  std::cout << told << " of " << whole.size() * 8 << " told; the others are padding and fields that nobody reads\n";
}

TEST(ArchiveDamageTest, AFlippedBitInATensorIsToldWithItsRecord) {
  const Folder folder;
  const uint64_t seed = test::test_seed(3);
  std::mt19937_64 random(seed);
  const StateDict state = {{"w", torch::arange(20000, at::kInt)}};
  const std::string whole = archive_bytes(state, kRecord);
  const size_t start = whole.find(std::string("\0\0\0\0\1\0\0\0\2\0\0\0", 12));
  ASSERT_NE(start, std::string::npos);
  for (int i = 0; i < test::repetitions(3000); ++i) {
    std::string changed = whole;
    const size_t bit = random() % (20000 * 4 * 8);
    changed[start + bit / 8] = static_cast<char>(changed[start + bit / 8] ^ (1 << (bit % 8)));
    EXPECT_THAT([&] { return read_archive(folder.put("flip.pt", changed)); }, ThrowsError(Errc::kCorrupt, HasSubstr("flip.pt: data/0: its bytes do not match their hash")));
    ASSERT_FALSE(HasFailure()) << "bit " << bit;
  }
}

// A checkpoint as a run writes it, with records of all sizes, changed in place.
class CheckpointDamageTest : public ::testing::Test {
 protected:
  CheckpointDamageTest() {
    torch::manual_seed(6);
    StateDict model, optimizer;
    for (int64_t i = 0; i < 24; ++i) {
      const at::Tensor weight = torch::randn({i % 7 + 1, 1 << (i % 12)});
      model.set(concat("layers.", i, ".weight"), weight);
      optimizer.set(i, StateDict{{"step", torch::tensor(3.f)}, {"exp_avg", torch::randn_like(weight)}, {"exp_avg_sq", torch::rand_like(weight)}});
    }
    state_ = {model, {{"last_epoch", 4}, {"optimizers", List{{StateDict{{"state", optimizer}}}}}}, {{"global_step_completed", 400}}, {}};
    write_checkpoint(file_, state_, {.index = 4, .epoch = 4, .global_step = 400, .run_id = "r1"});
    whole_ = test::read_bytes(file_);
  }
  // True: it is told. What is read instead must be what was written.
  bool is_told() const {
    try {
      const Checkpoint read = read_checkpoint(file_);
      const bool same = equal(read.module_interface_state, state_.module_interface_state) && equal(read.trainer_state, state_.trainer_state) &&
                        equal(read.trainer_backend_state, state_.trainer_backend_state);
      EXPECT_TRUE(same) << "a changed file was taken for whole, and its values differ";
      return false;
    } catch (const Error& error) {
      EXPECT_TRUE(error.code() == Errc::kCorrupt || error.code() == Errc::kUnsupported) << to_string(error.code()) << ": " << error.what();
      EXPECT_EQ(std::string(error.what()).rfind(file_.string() + ": ", 0), 0U) << error.what();
      return true;
    }
  }
  void put_byte(size_t at, char byte) const {
    std::fstream stream(file_, std::ios::binary | std::ios::in | std::ios::out);
    stream.seekp(static_cast<std::streamoff>(at)).put(byte);
  }

  Folder folder_;
  std::filesystem::path file_ = folder_ / "checkpoint_4.pt";
  Checkpoint state_;
  std::string whole_;
};

TEST_F(CheckpointDamageTest, NoneOfThousandsOfFlippedBitsIsSilent) {
  std::mt19937_64 random(test::test_seed(7));
  const int rounds = test::repetitions(3000);
  int told = 0;
  for (int i = 0; i < rounds; ++i) {
    const size_t bit = random() % (whole_.size() * 8);
    put_byte(bit / 8, static_cast<char>(whole_[bit / 8] ^ (1 << (bit % 8))));
    told += is_told() ? 1 : 0;
    put_byte(bit / 8, whole_[bit / 8]);
    ASSERT_FALSE(HasFailure()) << "bit " << bit % 8 << " of byte " << bit / 8;
  }
  EXPECT_FALSE(is_told()) << "all bits are back";
  std::cout << told << " of " << rounds << " flipped bits told, the others did no harm\n";
  EXPECT_GT(told, rounds * 9 / 10);
}

TEST_F(CheckpointDamageTest, EveryOf200TruncationsIsTold) {
  std::mt19937_64 random(test::test_seed(8));
  for (int i = 0; i < 200; ++i) {
    const size_t size = i < 20 ? whole_.size() - 1 - static_cast<size_t>(i) : random() % whole_.size();
    folder_.put("checkpoint_4.pt", std::string_view(whole_).substr(0, size));
    ASSERT_TRUE(is_told()) << "cut to " << size << " bytes";
  }
}

// The checksums are right, so that only the readers' own checks stand between these bytes and the process.
TEST(ArchiveDamageTest, ARandomlyChangedPickleNeverCrashesTheReader) {
  const Folder folder;
  std::mt19937_64 random(test::test_seed(4));
  const std::string whole = archive_bytes(small_state());
  const std::string pickle = whole.substr(64, whole.find("PK\7\b") - 64);
  ASSERT_EQ(pickle.substr(0, 2), "\x80\x02");
  int refused = 0;
  const int rounds = test::repetitions(50000);
  for (int i = 0; i < rounds; ++i) {
    std::string changed = pickle;
    for (uint64_t k = random() % 3 + 1; k > 0; --k) {
      const size_t at = random() % changed.size();
      switch (random() % 4) {
        case 0: changed.erase(at, random() % 4 + 1); break;
        case 1: changed.insert(at, changed.substr(random() % changed.size(), random() % 30)); break;
        default: changed[at] = static_cast<char>(random());
      }
      if (changed.empty()) changed = ".";
    }
    std::vector<HandMadeRecord> records = records_of(changed);
    records[2].data.resize(48);
    records.push_back({"a/data/1", std::string(8, '\1')});
    records.push_back({"a/data/2", ""});
    try {
      (void)read_archive(folder.put("fuzz.pt", make_zip(records)));
    } catch (const Error& error) {
      ++refused;
    }
  }
  std::cout << refused << " of " << rounds << " refused\n";
  EXPECT_GT(refused, rounds / 2);
}

class HostilePickleTest : public ::testing::Test {
 protected:
  void expect(Errc code, const std::string& why, const std::string& pickle) {
    EXPECT_THAT([&] { return read_archive(folder_.put("hostile.pt", make_zip(records_of("\x80\x02" + pickle)))); }, ThrowsError(code, HasSubstr("hostile.pt: " + why)));
  }
  Folder folder_;
};

TEST_F(HostilePickleTest, CodeIsNeverRunAndItsNameIsTold) {
  expect(Errc::kUnsupported, "data.pkl: holds os.system; ", "cos\nsystem\n" + pickled_text("true") + "\x85R.");
  expect(Errc::kUnsupported, "data.pkl: holds posix.system; ", "}" + pickled_text("a") + "cposix\nsystem\n" + pickled_text("true") + "\x85Rs.");
  expect(Errc::kUnsupported, "data.pkl: holds __builtin__.eval; ", "c__builtin__\neval\n.");
  expect(Errc::kUnsupported, "data.pkl: holds a\\x1b[2J.b; ", "ca\x1b[2J\nb\n.");
  expect(Errc::kUnsupported, "data.pkl: holds torch.load; ", "ctorch\nload\n.");
  expect(Errc::kCorrupt, "data.pkl: holds a name that does not end", "c" + std::string(100000, 'a'));
  expect(Errc::kCorrupt, "data.pkl: has opcode 105", "(ios\nsystem\n.");
}

TEST_F(HostilePickleTest, OtherPythonValuesAreRefusedByName) {
  expect(Errc::kUnsupported, "data.pkl: holds a sparse tensor (torch._utils._rebuild_sparse_tensor)", "ctorch._utils\n_rebuild_sparse_tensor\n.");
  expect(Errc::kUnsupported, "data.pkl: holds a quantised tensor (torch._utils._rebuild_qtensor)", "ctorch._utils\n_rebuild_qtensor\n.");
  expect(Errc::kUnsupported, "data.pkl: holds Python bytes", "c_codecs\nencode\n.");
  expect(Errc::kUnsupported, "data.pkl: holds torch.float32 as a value", "}" + pickled_text("d") + "ctorch\nfloat32\ns.");
  expect(Errc::kUnsupported, "data.pkl: holds a type or a storage as a value", "}" + pickled_text("d") + "ctorch\nfloat32\n\x85s.");
  expect(Errc::kUnsupported, "data.pkl: holds a whole number of more than 64 bits", "\x8a\x09" + std::string(9, '\1') + ".");
  expect(Errc::kUnsupported, "data.pkl: holds a dict key that is neither", "}NNs.");
  expect(Errc::kUnsupported, "data.pkl: does not hold a dict", "K\1.");
}

TEST_F(HostilePickleTest, ContainersThatHoldThemselvesOrNestTooDeeplyAreRefused) {
  expect(Errc::kCorrupt, "data.pkl: holds a container that holds itself", "]q" + std::string("\0h\0a.", 5));
  expect(Errc::kCorrupt, "data.pkl: changes a container that is in use", "]q" + std::string("\0h\0\x85", 4) + "a.");
  expect(Errc::kCorrupt, "data.pkl: changes a container that is in use", "]q" + std::string("\0\x85h\0K\1a.", 8));
  expect(Errc::kCorrupt, "data.pkl: is nested deeper than 64", ")" + std::string(100000, '\x85') + ".");
  expect(Errc::kCorrupt, "data.pkl: is nested deeper than 64", std::string(100, ']') + std::string(99, 'a') + ".");
  expect(Errc::kCorrupt, "data.pkl: holds a dict with the same key twice", "}(" + pickled_text("a") + "N" + pickled_text("a") + "Nu.");
}

TEST_F(HostilePickleTest, ReferencesCannotMultiplyIntoMoreMemoryThanThereIs) {
  std::string lists = "]q" + std::string("\0", 1);  // a list of two of the list before, 40 times: 2^40 values
  for (char i = 0; i < 40; ++i) lists += std::string("](h") + i + "h" + i + "eq" + static_cast<char>(i + 1);
  expect(Errc::kCorrupt, "data.pkl: refers back to so many values", "}" + pickled_text("x") + lists + "s.");
  std::string texts = pickled_text(std::string(1 << 20, 'x')) + "q" + std::string("\0", 1);
  for (int i = 0; i < 100000; ++i) texts += std::string("h\0", 2);
  expect(Errc::kCorrupt, "data.pkl: refers back to so many values", "](" + texts + "e.");
}

TEST_F(HostilePickleTest, TensorsCannotReachPastTheirStorage) {
  const int64_t huge = INT64_MAX;
  expect(Errc::kCorrupt, "data.pkl: a tensor reaches past its storage", pickled_dict_of_tensor(1, {4}, {1}));
  expect(Errc::kCorrupt, "data.pkl: a tensor reaches past its storage", pickled_dict_of_tensor(0, {2, 2}, {3, 1}));
  expect(Errc::kCorrupt, "data.pkl: a tensor is too large", pickled_dict_of_tensor(0, {2, 2}, {huge, huge}));
  expect(Errc::kCorrupt, "data.pkl: a tensor is too large", pickled_dict_of_tensor(0, {huge, huge, huge}, {0, 0, 0}));
  expect(Errc::kCorrupt, "data.pkl: a tensor is too large", pickled_dict_of_tensor(0, {huge, huge, 0}, {0, 0, 0}));
  expect(Errc::kCorrupt, "data.pkl: a tensor has a bad offset", pickled_dict_of_tensor(huge, {0}, {1}));
  expect(Errc::kCorrupt, "data.pkl: a tensor has a bad offset", pickled_dict_of_tensor(-1, {1}, {1}));
  expect(Errc::kCorrupt, "data.pkl: a tensor has a negative size", pickled_dict_of_tensor(0, {-1}, {1}));
  expect(Errc::kCorrupt, "data.pkl: a tensor has a negative size", pickled_dict_of_tensor(3, {2}, {-1}));
  expect(Errc::kCorrupt, "data.pkl: a tensor has no matching sizes", pickled_dict_of_tensor(0, {1, 1}, {1}));
  expect(Errc::kCorrupt, "data.pkl: a storage has a bad size", pickled_dict_of_tensor(0, {1}, {1}, "0", huge));
  expect(Errc::kCorrupt, "data/0: is of 16 bytes, data.pkl says 400", pickled_dict_of_tensor(0, {100}, {1}, "0", 100));
  expect(Errc::kCorrupt, "data/7: the record is missing", pickled_dict_of_tensor(0, {1}, {1}, "7"));
  expect(Errc::kCorrupt, "data/../version: the record is missing", pickled_dict_of_tensor(0, {1}, {1}, "../version"));
}

TEST_F(HostilePickleTest, MalformedPicklesAreCorrupt) {
  for (const char* pickle : {"", ".", "}", "}a.", "}(.", "t.", "}}.", "}.x", "h\5.", "]K", "X\xff\xff\xff\xff", "}b.", "NR.", "Q.", "](NNu.", "}(Ku.", "q\1."}) {
    expect(Errc::kCorrupt, "data.pkl: ", pickle);
  }
  expect(Errc::kCorrupt, "data.pkl: holds text that is not UTF-8", pickled_text("\xff") + ".");
}

class HostileZipTest : public ::testing::Test {
 protected:
  void expect(Errc code, const std::string& why, const std::string& bytes) {
    EXPECT_THAT([&] { return read_archive(folder_.put("hostile.pt", bytes)); }, ThrowsError(code, HasSubstr("hostile.pt: " + why)));
  }
  static std::vector<HandMadeRecord> good() { return records_of("\x80\x02}."); }
  static std::vector<HandMadeRecord> with(HandMadeRecord record) {
    std::vector<HandMadeRecord> records = good();
    records.push_back(std::move(record));
    return records;
  }

  Folder folder_;
};

TEST_F(HostileZipTest, TheFilesThatTheseTestsBreakAreGoodOnes) {
  EXPECT_EQ(read_archive(folder_.put("good.pt", make_zip(with({"a/extra", "x"})))).root.size(), 0U);
}

TEST_F(HostileZipTest, NamesThatLeaveTheFolderOrOccurTwiceAreRefused) {
  for (const char* name : {"a/../b", "../b", "..", "/b", "a//b", "a/./b", "a\\..\\b", "b", "a/b\n", "a/"}) {
    expect(Errc::kCorrupt, "", make_zip(with({name, "x"})));
  }
  expect(Errc::kCorrupt, "a/../b: no name for a record", make_zip(with({"a/../b", "x"})));
  expect(Errc::kCorrupt, "b/c: lies outside the folder 'a/'", make_zip(with({"b/c", "x"})));
  expect(Errc::kCorrupt, "data/0: there are two records of this name", make_zip(with({"a/data/0", "x"})));
}

TEST_F(HostileZipTest, RecordsOutsideTheFileOrOverOneAnotherAreRefused) {
  expect(Errc::kCorrupt, "a/x: reaches past the end of the file", make_zip(with({.name = "a/x", .data = "x", .size = 1U << 30})));
  expect(Errc::kCorrupt, "a/x: has no local header", make_zip(with({.name = "a/x", .data = "x", .header = 1U << 30})));
  expect(Errc::kCorrupt, "a/x: has no local header", make_zip(with({.name = "a/x", .data = "x", .header = 7})));
  expect(Errc::kCorrupt, "x: overlaps what follows it", make_zip(with({.name = "a/x", .data = "x", .size = 40})));
  expect(Errc::kCorrupt, "a/x: its local header contradicts", make_zip(with({.name = "a/x", .data = "x", .header = 0})));
  std::vector<HandMadeRecord> nested = good();  // a record that begins inside the one before
  const std::string inner = make_zip({{"a/y", "1234"}}).substr(0, 30 + 3 + 4);
  nested.push_back({"a/x", inner});
  const auto header = static_cast<uint32_t>(make_zip(nested).find(inner));
  nested.push_back({.name = "a/y", .data = "1234", .header = header});
  expect(Errc::kCorrupt, "x: overlaps what follows it", make_zip(nested));
}

TEST_F(HostileZipTest, WhatTheDirectoryAndTheLocalHeaderDisagreeOnIsRefused) {
  expect(Errc::kCorrupt, "a/x: its local header contradicts", make_zip(with({.name = "a/x", .data = "x", .local_name = "a/y"})));
  expect(Errc::kCorrupt, "x: its bytes do not match", make_zip(with({.name = "a/x", .data = "x", .checksum = 5})));
}

TEST_F(HostileZipTest, CompressedEncryptedAndBigEndianFilesAreRefused) {
  expect(Errc::kUnsupported, "x: is compressed", make_zip(with({.name = "a/x", .data = "x", .method = 8})));
  expect(Errc::kUnsupported, "x: is encrypted", make_zip(with({.name = "a/x", .data = "x", .flags = 1})));
  std::vector<HandMadeRecord> big = good();
  big[1].data = "big";
  expect(Errc::kUnsupported, "byteorder: is 'big'", make_zip(big));
}

TEST_F(HostileZipTest, MissingRecordsAndOtherVersionsAreTold) {
  std::vector<HandMadeRecord> records = good();
  records.erase(records.begin());
  expect(Errc::kCorrupt, "data.pkl: the record is missing", make_zip(records));
  records = good();
  records[3].data = "x\n";
  expect(Errc::kCorrupt, "version: is no number", make_zip(records));
  records[3].data = "11\n";
  expect(Errc::kUnsupported, "version: of torch.save's format is 11", make_zip(records));
  records.pop_back();
  expect(Errc::kCorrupt, "version: the record is missing", make_zip(records));
  records = good();
  for (HandMadeRecord& record : records) record.checksum = 0;
  expect(Errc::kUnsupported, "zip directory: holds no checksums", make_zip(records));
}

TEST_F(HostileZipTest, WhatIsNoZipAtAllIsCorrupt) {
  expect(Errc::kCorrupt, "zip directory: the file is empty", "");
  expect(Errc::kCorrupt, "zip directory: has no end", "hello");
  expect(Errc::kCorrupt, "zip directory: has no end", std::string(200000, 'P'));
  expect(Errc::kUnsupported, "zip directory: written in torch.save's format from before", "\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 j\xa8P\x19.");
  expect(Errc::kCorrupt, "", make_zip({}));
}

TEST_F(HostileZipTest, FilesOfTorchSaveInCppAreToldAsThat) {
  torch::save(torch::ones({3}), (folder_ / "cpp.pt").string());
  EXPECT_THAT([&] { return read_archive(folder_ / "cpp.pt"); }, ThrowsError(Errc::kUnsupported, HasSubstr("a TorchScript or torch::save archive")));
  const std::vector<char> pickled = torch::pickle_save(c10::IValue(std::vector<int64_t>{1}));
  folder_.put("pickle_save.pt", std::string_view(pickled.data(), pickled.size()));
  EXPECT_THAT([&] { return read_archive(folder_ / "pickle_save.pt"); }, ThrowsError(Errc::kUnsupported, HasSubstr("pickle_save.pt: ")));
}

}  // namespace
}  // namespace marlin
