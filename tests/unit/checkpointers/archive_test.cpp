#include "marlin/checkpointers/archive.h"

#include <gmock/gmock.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>
#include <random>

#include <map>

#include "archive/hash.h"
#include "archive_test_util.h"
#include "marlin/sdk/error.h"
#include "throws_error.h"

namespace marlin {
namespace {

using test::archive_bytes;
using test::Folder;
using test::round_trip;
using testing::ThrowsError;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

struct Failure {
  std::optional<Errc> code;
  std::string text;
};

template <class Call>
Failure failure_of(const Call& call) {
  try {
    (void)call();
  } catch (const Error& error) {
    return {error.code(), error.what()};
  }
  return {std::nullopt, "no error"};
}

const at::Tensor& tensor_at(const Archive& archive, const char* key) { return archive.root.at(key).as_tensor(); }
void* storage_of(const at::Tensor& tensor) { return tensor.storage().unsafeGetStorageImpl(); }

const std::vector<at::ScalarType>& all_types() {
  using enum at::ScalarType;
  static const std::vector<at::ScalarType> types = {
      Float,      Double,      Half,          BFloat16,        Long,            Int,            Short,            Char,    Byte,    Bool,
      ComplexFloat, ComplexDouble, ComplexHalf, BComplex32,    UInt16,          UInt32,         UInt64,           Float8_e5m2,
      Float8_e4m3fn, Float8_e5m2fnuz, Float8_e4m3fnuz, Float8_e8m0fnu, Float4_e2m1fn_x2, Bits1x8, Bits2x4,       Bits4x2, Bits8,   Bits16};
  return types;
}

// Any bytes as a tensor of any type; a bool's are 0 or 1.
at::Tensor random_tensor(at::ScalarType type, int64_t size) {
  const auto item_size = static_cast<int64_t>(c10::elementSize(type));
  const at::Tensor bytes = torch::randint(0, type == at::kBool ? 2 : 256, {size * item_size}, at::kByte);
  return at::empty({0}, at::TensorOptions().dtype(type)).set_(bytes.storage(), 0, {size}, {1});
}

TEST(ArchiveTest, RoundTripKeepsEveryKindOfValueAndItsBits) {
  const Folder folder;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double inf = std::numeric_limits<double>::infinity();
  StateDict numbers;
  int64_t key = -3;
  for (const int64_t number : std::initializer_list<int64_t>{0, 255, 256, 65535, 65536, -1, INT32_MAX, INT32_MIN, int64_t{1} << 31,
                                                             -(int64_t{1} << 31) - 1, INT64_MAX, INT64_MIN}) {
    numbers.set(key++, number);
  }
  const StateDict root = {
      {"null", nullptr},
      {"yes", true},
      {"no", false},
      {"numbers", numbers},
      {"floats", List{{0.1, -0.0, nan, inf, -inf, std::numeric_limits<double>::denorm_min()}}},
      {"text", "\u00e9\u6f22\U0001f600"},
      {"empty text", ""},
      {"text with a zero", std::string("a\0b", 3)},
      {"long text", std::string(100000, 'x')},
      {"empty list", List{}},
      {"empty tuple", Tuple{}},
      {"empty dict", StateDict()},
      {"tuple", Tuple{{1, Tuple{{2.5, "x"}}, List{{StateDict{{"k", 1}}}}}}},
      {7, "a key that is a number"},
      {"7", "a key that is text"},
      {"tensor", torch::randn({3, 4})},
  };
  const Archive read = round_trip(folder, root);
  EXPECT_TRUE(equal(read.root, root));
  EXPECT_EQ(read.root.at("floats").as_items()[1].as_double(), 0.0);
  EXPECT_TRUE(std::signbit(read.root.at("floats").as_items()[1].as_double()));
}

TEST(ArchiveTest, RoundTripKeepsOrderedDictsAndTheirAttributes) {
  const Folder folder;
  StateDict metadata = {{"", StateDict{{"version", 1}}}, {"1", StateDict{{"version", 2}}}};
  metadata.ordered_dict = true;
  StateDict root = {{"weight", torch::ones({2})}, {"plain", StateDict{{"a", 1}}}};
  root.ordered_dict = true;
  root.attributes = std::make_shared<const StateDict>(StateDict{{"_metadata", metadata}});
  const Archive read = round_trip(folder, root);
  EXPECT_TRUE(equal(read.root, root));
  EXPECT_TRUE(read.root.ordered_dict);
  EXPECT_FALSE(read.root.at("plain").as_dict().ordered_dict);
  ASSERT_NE(read.root.attributes, nullptr);
  EXPECT_TRUE(equal(*read.root.attributes, *root.attributes));
  EXPECT_TRUE(read.root.attributes->at("_metadata").as_dict().ordered_dict);
  EXPECT_EQ(read.root.at("plain").as_dict().attributes, nullptr);
}

TEST(ArchiveTest, RoundTripKeepsEveryDtype) {
  const Folder folder;
  torch::manual_seed(test::test_seed(1));
  StateDict root;
  for (const at::ScalarType type : all_types()) root.set(c10::toString(type), random_tensor(type, 5));
  for (const at::ScalarType type : all_types()) root.set(std::string("empty ") + c10::toString(type), at::empty({0, 3}, type));
  const Archive read = round_trip(folder, root);
  EXPECT_TRUE(equal(read.root, root));
  for (const at::ScalarType type : all_types()) EXPECT_EQ(tensor_at(read, c10::toString(type)).scalar_type(), type);
}

TEST(ArchiveTest, ViewsKeepStridesOffsetsAndSharedStorage) {
  const Folder folder;
  const at::Tensor base = torch::arange(24.).reshape({4, 6});
  const StateDict root = {
      {"base", base},
      {"slice", base.slice(0, 1, 3).slice(1, 2, 5)},
      {"transposed", base.t()},
      {"every second", base.slice(1, 0, 6, 2)},
      {"expanded", torch::ones({1}).expand({5})},
      {"scalar", torch::tensor(3.5)},
      {"scalar of base", base[2][3]},
      {"empty", torch::empty({2, 0, 3})},
      {"empty view", base.slice(0, 4, 4)},
      {"channels last", torch::randn({2, 3, 4, 4}).contiguous(at::MemoryFormat::ChannelsLast)},
      {"list", List{{base[1], torch::zeros({2})}}},
  };
  const Archive read = round_trip(folder, root);
  EXPECT_TRUE(equal(read.root, root));
  for (const StateDict::Entry& entry : root) {
    const auto* tensor = entry.value.get_if<at::Tensor>();
    if (tensor == nullptr) continue;
    const at::Tensor& other = read.root.at(entry.key).as_tensor();
    EXPECT_EQ(other.strides(), tensor->strides()) << to_string(entry.key);
    EXPECT_EQ(other.storage_offset(), tensor->storage_offset()) << to_string(entry.key);
    EXPECT_EQ(other.storage().nbytes(), tensor->storage().nbytes()) << to_string(entry.key);
  }
  for (const char* view : {"slice", "transposed", "every second", "scalar of base", "empty view"}) {
    EXPECT_EQ(storage_of(tensor_at(read, view)), storage_of(tensor_at(read, "base"))) << view;
  }
  EXPECT_EQ(storage_of(read.root.at("list").as_items()[0].as_tensor()), storage_of(tensor_at(read, "base")));
  EXPECT_NE(storage_of(tensor_at(read, "expanded")), storage_of(tensor_at(read, "base")));
}

TEST(ArchiveTest, AStorageIsWrittenOnceAndWhole) {
  const at::Tensor big = torch::zeros({1 << 20}, at::kByte);
  const uint64_t one = archive_bytes({{"a", big}}).size();
  EXPECT_GT(one, uint64_t{1} << 20);
  EXPECT_LT(archive_bytes({{"a", big}, {"b", big}, {"c", big.slice(0, 5, 9)}}).size(), one + 500);
  EXPECT_GT(archive_bytes({{"tiny view of it", big.slice(0, 5, 9)}}).size(), uint64_t{1} << 20);
}

TEST(ArchiveTest, AStorageMayBeSeenAsSeveralTypes) {
  const Folder folder;
  const at::Tensor floats = torch::randn({6});
  const at::Tensor odd = torch::randint(0, 256, {10}, at::kByte);
  const StateDict root = {{"float", floats},
                          {"int", floats.view(at::kInt)},
                          {"byte", floats.view(at::kByte)},
                          {"odd", at::empty({0}).set_(odd.storage(), 0, {2}, {1})}};
  const Archive read = round_trip(folder, root);
  EXPECT_TRUE(equal(read.root, root));
  EXPECT_EQ(storage_of(tensor_at(read, "float")), storage_of(tensor_at(read, "int")));
  EXPECT_EQ(storage_of(tensor_at(read, "float")), storage_of(tensor_at(read, "byte")));
  EXPECT_EQ(tensor_at(read, "odd").storage().nbytes(), 10U);
}

TEST(ArchiveTest, ConjugateAndNegativeViewsAreResolved) {
  const Folder folder;
  const at::Tensor complex = torch::randn({3}, at::kComplexFloat);
  const at::Tensor negative = at::imag(complex.conj());
  ASSERT_TRUE(negative.is_neg());
  const Archive read = round_trip(folder, {{"conj", complex.conj()}, {"neg", negative}});
  EXPECT_FALSE(tensor_at(read, "conj").is_conj());
  EXPECT_FALSE(tensor_at(read, "neg").is_neg());
  EXPECT_TRUE(tensor_at(read, "conj").equal(complex.conj()));
  EXPECT_TRUE(tensor_at(read, "neg").equal(negative));
}

TEST(ArchiveTest, TensorsAreReadDetached) {
  const Folder folder;
  const at::Tensor parameter = torch::randn({2}, torch::requires_grad());
  const at::Tensor result = parameter * 2;
  const at::Tensor complex = torch::randn({2}, torch::dtype(at::kComplexFloat).requires_grad(true));
  const Archive read = round_trip(folder, {{"parameter", parameter}, {"result", result}, {"conj", complex.conj()}});
  for (const char* key : {"parameter", "result", "conj"}) EXPECT_FALSE(tensor_at(read, key).requires_grad()) << key;
  EXPECT_TRUE(tensor_at(read, "parameter").equal(parameter));
}

TEST(ArchiveTest, TensorsAreAlignedAndOutliveFileAndArchive) {
  const Folder folder;
  const StateDict root = {{"a", torch::randn({3})}, {"b", torch::randn({5, 5})}, {"c", torch::randint(0, 9, {7}, at::kChar)}};
  const std::filesystem::path file = folder.put("a.pt", archive_bytes(root));
  at::Tensor kept;
  {
    const Archive read = read_archive(file);
    for (const StateDict::Entry& entry : read.root) EXPECT_EQ(reinterpret_cast<uintptr_t>(entry.value.as_tensor().const_data_ptr()) % 64, 0U);
    kept = tensor_at(read, "b");
  }
  std::filesystem::remove(file);
  EXPECT_TRUE(kept.equal(root.at("b").as_tensor()));
}

TEST(ArchiveTest, WritingToATensorDoesNotReachTheFile) {
  const Folder folder;
  const StateDict root = {{"a", torch::zeros({1000})}};
  const std::filesystem::path file = folder.put("a.pt", archive_bytes(root));
  const Archive first = read_archive(file);
  first.root.at("a").as_tensor().fill_(1);
  EXPECT_TRUE(equal(read_archive(file).root, root));
}

TEST(ArchiveTest, SizeIsKnownBeforehandAndEqualStatesGiveEqualBytes) {
  StateDict root = {{"x", torch::randn({100})}, {"empty", torch::empty({0})}, {"y", List{{1, "z"}}}};
  for (int i = 0; i < 70; ++i) root.set(i, torch::randn({i}));
  const CommitRecord record{.kind = "full", .unit = "epoch", .index = 3};
  EXPECT_EQ(archive_size(root, record), archive_bytes(root, record).size());
  EXPECT_EQ(archive_bytes(root, record), archive_bytes(clone(root), record));
  EXPECT_EQ(archive_size({}, {}), archive_bytes({}, {}).size());
}

TEST(ArchiveTest, RandomStatesSurviveTheRoundTrip) {
  const Folder folder;
  const uint64_t seed = test::test_seed(20);
  std::mt19937_64 random(seed);
  torch::manual_seed(seed);
  std::vector<at::Tensor> tensors;
  const std::function<Value(int)> make = [&](int depth) -> Value {
    switch (random() % (depth > 0 ? 9 : 6)) {
      case 0: return nullptr;
      case 1: return random() % 2 == 0;
      case 2: return static_cast<int64_t>(random() >> (random() % 64));
      case 3: return static_cast<double>(static_cast<int64_t>(random())) / 1e6;
      case 4: return std::string(random() % 300, static_cast<char>('a' + random() % 26));
      case 5: {
        if (!tensors.empty() && random() % 3 == 0) return tensors[random() % tensors.size()].slice(0, static_cast<int64_t>(random() % 3));
        return tensors.emplace_back(random_tensor(all_types()[random() % all_types().size()], static_cast<int64_t>(random() % 40)));
      }
      default: break;
    }
    std::vector<Value> items;
    for (size_t i = random() % 8; i > 0; --i) items.push_back(make(depth - 1));
    if (random() % 3 == 0) return List{items};
    if (random() % 2 == 0) return Tuple{items};
    StateDict dict;
    dict.ordered_dict = random() % 2 == 0;
    for (Value& item : items) {
      const Key key = random() % 2 == 0 ? Key(static_cast<int64_t>(random() % 1000)) : Key(std::to_string(random()));
      dict.set(key, std::move(item));
    }
    return dict;
  };
  for (int i = 0; i < test::repetitions(1000); ++i) {
    tensors.clear();
    StateDict root;
    for (int k = 0; k < 10; ++k) root.set(k, make(4));
    ASSERT_TRUE(equal(round_trip(folder, root).root, root)) << "round " << i;
  }
}

TEST(ArchiveTest, WhatCannotBeWrittenIsRefusedByNameBeforeAnythingIsWritten) {
  const Folder folder;
  const auto in_state = [](Value value) {
    const StateDict optimizer = {{3, StateDict{{"exp_avg", std::move(value)}}}};
    return StateDict{{"ok", torch::ones({2})}, {"trainer_state", StateDict{{"optimizers", List{{optimizer}}}}}};
  };
  const at::Tensor shortened = torch::ones({4});
  shortened.storage().unsafeGetStorageImpl()->set_nbytes(8);
  StateDict deep;
  for (int i = 0; i < 70; ++i) deep = StateDict{{"d", deep}};
  StateDict numbered = {{"a", 1}};
  numbered.attributes = std::make_shared<const StateDict>(StateDict{{1, 2}});
  const std::pair<Value, const char*> cases[] = {
      {at::Tensor(), "undefined"},
      {torch::eye(3).to_sparse(), "Sparse"},
      {torch::quantize_per_tensor(torch::ones({2}), 0.1, 0, at::kQInt8), "quantised"},
      {torch::ones({2}, at::kMeta), "without memory"},
      {at::_efficientzerotensor({2}), "without memory"},
      {shortened, "freed or shortened"},
      {"\xff", "not UTF-8"},
      {"\xed\xa0\x80", "not UTF-8"},
      {deep, "nested deeper than 64"},
      {numbered, "an attribute's name is text"},
  };
  for (const auto& [value, why] : cases) {
    const Failure failure = failure_of([&] { return write_archive(folder / "a.pt", in_state(value), {}), 0; });
    EXPECT_EQ(failure.code, Errc::kUnsupported) << why;
    EXPECT_THAT(failure.text, AllOf(StartsWith("trainer_state.optimizers.0.3.exp_avg"), HasSubstr(why)));
    EXPECT_TRUE(std::filesystem::is_empty(folder / ""));
    EXPECT_EQ(failure_of([&] { return archive_size(in_state(value), {}); }).code, Errc::kUnsupported);
  }
}

TEST(ArchiveTest, NestingUpToTheLimitIsKept) {
  const Folder folder;
  StateDict deep = {{"x", 1}};
  for (int i = 1; i < 64; ++i) deep = StateDict{{"d", deep}};
  EXPECT_TRUE(equal(round_trip(folder, deep).root, deep));
}

// Two threads and pieces of 1 MiB: records that end within one piece, at its end, and after it.
TEST(ArchiveTest, LargeStatesAreWrittenWholeAndTheSameEveryTime) {
  const Folder folder;
  torch::manual_seed(test::test_seed(21));
  StateDict root;
  for (const int64_t size : {1, 63, 4096, 1 << 19, (1 << 19) + 1, (1 << 20) - 200, 1 << 20, (1 << 20) + 1, 3 << 20, 5, 0, 11 << 20}) {
    root.set(size, torch::randint(0, 256, {size}, at::kByte));
  }
  for (int i = 0; i < 3000; ++i) root.set(std::to_string(i), torch::randint(0, 256, {i % 700}, at::kByte));
  const std::string bytes = archive_bytes(root);
  const Archive read = read_archive(folder.put("a.pt", bytes));
  EXPECT_TRUE(equal(read.root, root));
  EXPECT_EQ(read.verified, Verified::kHashes);
  EXPECT_EQ(archive_size(root, {}), bytes.size());
  for (int i = 0; i < 5; ++i) ASSERT_EQ(archive_bytes(root), bytes);
}

TEST(CommitRecordTest, SurvivesTheRoundTripWithNanAndInfinities) {
  const Folder folder;
  CommitRecord record{.kind = "full", .unit = "step", .index = 500, .epoch = 2, .global_step = INT64_MAX, .cause = "period", .run_id = "r \"1\"\n"};
  record.metrics.set("val/loss", 0.1);
  record.metrics.set("a/nan", std::numeric_limits<double>::quiet_NaN());
  record.metrics.set("a/inf", std::numeric_limits<double>::infinity());
  record.metrics.set("a/-inf", -std::numeric_limits<double>::infinity());
  record.metrics.set("a/whole", 3.0);
  const Archive read = round_trip(folder, {{"a", 1}}, record);
  ASSERT_TRUE(read.record);
  EXPECT_EQ(read.record->format_version, 1);
  EXPECT_EQ(read.record->kind, "full");
  EXPECT_EQ(read.record->unit, "step");
  EXPECT_EQ(read.record->index, 500);
  EXPECT_EQ(read.record->epoch, 2);
  EXPECT_EQ(read.record->global_step, INT64_MAX);
  EXPECT_EQ(read.record->cause, "period");
  EXPECT_EQ(read.record->run_id, "r \"1\"\n");
  EXPECT_EQ(read.record->marlin_version, MARLIN_VERSION);
  EXPECT_EQ(read.record->torch_version, TORCH_VERSION);
  ASSERT_EQ(read.record->metrics.size(), 5U);
  EXPECT_EQ(read.record->metrics.begin()->first, "val/loss") << "order is kept";
  EXPECT_EQ(read.record->metrics.at("val/loss"), 0.1);
  EXPECT_TRUE(std::isnan(read.record->metrics.at("a/nan")));
  EXPECT_EQ(read.record->metrics.at("a/inf"), std::numeric_limits<double>::infinity());
  EXPECT_EQ(read.record->metrics.at("a/-inf"), -std::numeric_limits<double>::infinity());
  EXPECT_EQ(read.record->metrics.at("a/whole"), 3.0);
}

Archive with_json(const Folder& folder, const std::string& json) {
  std::vector<test::HandMadeRecord> records = test::records_of("\x80\x02}.");
  records.push_back({"a/marlin.json", json});
  return read_archive(folder.put("json.pt", test::make_zip(records)));
}

TEST(CommitRecordTest, IsAbsentInAFileWithoutOne) {
  const Folder folder;
  EXPECT_FALSE(read_archive(folder.put("a.pt", test::make_zip(test::records_of("\x80\x02}.")))).record);
}

TEST(CommitRecordTest, KeysOfALaterWriterArePassedOverAndALaterFormatIsToldAsThat) {
  const Folder folder;
  const Archive read = with_json(folder, R"({"format_version": 1, "index": 4, "epoch": 4, "global_step": 9, "shards": {"data/0": [1, 2]}})");
  ASSERT_TRUE(read.record);
  EXPECT_EQ(read.record->index, 4);
  EXPECT_THAT([&] { return with_json(folder, R"({"format_version": 2})"); }, ThrowsError(Errc::kUnsupported, HasSubstr("json.pt: marlin.json: written by a later libmarlin (format version 2")));
}

TEST(CommitRecordTest, ABadOneMakesTheFileCorrupt) {
  const Folder folder;
  const std::string numbers = R"("format_version": 1, "index": 4, "epoch": 4, "global_step": 9)";
  const std::string cases[] = {
      "",
      "nonsense",
      "[]",
      "{}",
      std::string(100000, '['),
      R"({"format_version": 0})",
      R"({"format_version": 1.5})",
      R"({"format_version": 1})",
      R"({"format_version": 1, "index": 18446744073709551615, "epoch": 4, "global_step": 9})",
      "{" + numbers + R"(, "kind": 3})",
      "{" + numbers + R"(, "metrics": []})",
      "{" + numbers + R"(, "metrics": {"a": "x"}})",
      "{" + numbers + ", \"run_id\": \"\xff\"}",
      "{" + numbers + R"(, "xxh3_128": 5})",
      "{" + numbers + R"(, "records": {}})",
      "{" + numbers + R"(, "xxh3_128": "0123456789abcdef0123456789abcdef"})",
  };
  for (const std::string& json : cases) EXPECT_THAT([&] { return with_json(folder, json); }, ThrowsError(Errc::kCorrupt, HasSubstr("json.pt: marlin.json: ")));
}

// The text of a record with that list of records, and its own hash.
std::string json_with_records(const std::string& records) {
  const std::string text = "{\"format_version\": 1, \"index\": 4, \"epoch\": 4, \"global_step\": 9, \"records\": " + records + ",\n \"xxh3_128\": \"";
  return text + archive::to_hex(archive::hash_of(text)) + "\"\n}\n";
}

TEST(CommitRecordTest, ListsEveryOtherRecordWithSizeAndHash) {
  const Folder folder;
  const StateDict root = {{"w", torch::arange(100)}, {"empty", torch::empty({0})}};
  const std::filesystem::path file = folder.put("a.pt", archive_bytes(root));
  const Archive read = read_archive(file);
  ASSERT_TRUE(read.record);
  std::map<std::string, RecordEntry> records;
  for (const RecordEntry& entry : read.record->records) records[entry.name] = entry;
  std::vector<std::string> names;
  for (const auto& [name, entry] : records) names.push_back(name);
  EXPECT_THAT(names, ::testing::UnorderedElementsAre("data.pkl", ".format_version", ".storage_alignment", "byteorder", "data/0", "data/1", "version", ".data/serialization_id"));
  EXPECT_EQ(records["data/0"].size, 800U);
  EXPECT_EQ(records["data/1"].size, 0U);
  const std::string_view bytes(static_cast<const char*>(root.at("w").as_tensor().const_data_ptr()), 800);
  EXPECT_EQ(records["data/0"].xxh3_128, archive::to_hex(archive::hash_of(bytes)));
  EXPECT_EQ(records["data/1"].xxh3_128, "99aa06d3014798d86001c324468d497f") << "of no bytes, as `xxhsum -H2` has it";
}

TEST(CommitRecordTest, TheRecordsOfTheFileMustBeThoseOfTheList) {
  const Folder folder;
  const auto entry = [](const std::string& name, const std::string& bytes) {
    return "\"" + name + "\": {\"size\": " + std::to_string(bytes.size()) + ", \"xxh3_128\": \"" + archive::to_hex(archive::hash_of(bytes)) + "\"}";
  };
  const std::string all = entry("data.pkl", "\x80\x02}.") + ", " + entry("byteorder", "little") + ", " + entry("version", "3\n");
  const std::string storage = entry("data/0", std::string(16, '\7'));
  EXPECT_EQ(with_json(folder, json_with_records("{" + all + ", " + storage + "}")).verified, Verified::kHashes);
  const auto expect = [&](const std::string& why, const std::string& records) {
    EXPECT_THAT([&] { return with_json(folder, json_with_records(records)); }, ThrowsError(Errc::kCorrupt, HasSubstr("json.pt: " + why)));
  };
  expect("data/0: is not listed in marlin.json", "{" + all + "}");
  expect("data/1: the record is missing", "{" + all + ", " + storage + ", " + entry("data/1", "x") + "}");
  expect("data/0: is of 16 bytes, marlin.json says 17", "{" + all + ", " + entry("data/0", std::string(17, '\7')) + "}");
  expect("data/0: its bytes do not match their hash", "{" + all + ", " + entry("data/0", std::string(16, '\6')) + "}");
  expect("marlin.json: its list of records is no JSON object", "[]");
  expect("marlin.json: records: 'data/0' has no size and hash", R"({"data/0": 5})");
  expect("marlin.json: records: 'data/0' has no size and hash", R"({"data/0": {"size": -1, "xxh3_128": "0123456789abcdef0123456789abcdef"}})");
  expect("marlin.json: records: 'data/0' has no size and hash", R"({"data/0": {"size": 16, "xxh3_128": "0123456789ABCDEF0123456789ABCDEF"}})");
}

TEST(CommitRecordTest, AnyChangeOfItsOwnBytesIsNoticed) {
  const Folder folder;
  const StateDict root = {{"w", torch::arange(4)}};
  const std::string whole = archive_bytes(root);
  const size_t start = whole.find("{\n \"format_version\"");
  const size_t end = whole.find("\"\n}\n", start) + 4;
  ASSERT_NE(start, std::string::npos);
  const std::string json = whole.substr(start, end - start);
  for (size_t i = 0; i < json.size(); ++i) {
    std::string changed = json;
    changed[i] = static_cast<char>(changed[i] ^ 1);
    // Made by hand, the file has a CRC-32 that fits.
    std::vector<test::HandMadeRecord> records = test::records_of("\x80\x02}.");
    records.push_back({"a/marlin.json", changed});
    try {
      (void)read_archive(folder.put("json.pt", test::make_zip(records)));
      ADD_FAILURE() << "byte " << i << " of the record";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("json.pt: marlin.json: ")) << "byte " << i;
    }
  }
}

TEST(ArchiveTest, MisalignedStoragesAreReadAndAligned) {
  const Folder folder;
  const std::string pickle = "\x80\x02" + test::pickled_dict_of_tensor(0, {4}, {1});
  const Archive read = read_archive(folder.put("plain.pt", test::make_zip(test::records_of(pickle))));
  const at::Tensor& tensor = tensor_at(read, "w");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 64, 0U);
  EXPECT_EQ(std::string(static_cast<const char*>(tensor.const_data_ptr()), 16), std::string(16, '\7'));
}

TEST(ArchiveTest, AMissingFileAndAnUnreadableOneAreToldApart) {
  const Folder folder;
  EXPECT_THAT([&] { return read_archive(folder / "nowhere.pt"); }, ThrowsError(Errc::kNotFound, HasSubstr("nowhere.pt: open: No such file or directory")));
  EXPECT_THAT([&] { return read_archive(folder / ""); }, ThrowsError(Errc::kIo, HasSubstr("Is a directory")));
}

}  // namespace
}  // namespace marlin
