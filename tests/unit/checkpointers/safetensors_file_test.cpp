// safetensors files: what is written comes back, and what is broken, hostile or of another kind is told.
#include <gmock/gmock.h>
#include <torch/torch.h>

#include <cstring>
#include <map>

#include "faulty_file_system.h"
#include "marlin/checkpointers/safetensors.h"
#include "marlin/sdk/text.h"
#include "safetensors_test_util.h"
#include "temp_folder.h"
#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::Pair;
using ::testing::StartsWith;
using test::safetensors_bytes;
using testing::content_of;
using testing::names_in;
using testing::TempFolder;
using testing::ThrowsError;
using testing::write_file;

at::Tensor patterned(at::ScalarType type) {
  at::Tensor bytes = torch::arange(6 * static_cast<int64_t>(c10::elementSize(type)), at::kInt).mul_(37).add_(11);
  bytes = (type == at::kBool ? bytes.bitwise_and(1) : bytes.bitwise_and(255)).to(at::kByte);
  return at::empty({0}, at::TensorOptions().dtype(type)).set_(bytes.storage(), 0, {2, 3}, {3, 1});
}

StateDict state_of(const std::vector<NamedTensor>& tensors) {
  StateDict state;
  for (const NamedTensor& entry : tensors) state.set(entry.name, entry.tensor);
  return state;
}

// Whether both have the same tensors under the same names, in whatever order.
bool same_tensors(const StateDict& a, const StateDict& b) {
  for (const StateDict::Entry& entry : a) {
    if (const Value* other = b.find(entry.key); other == nullptr || !equal(entry.value, *other)) return false;
  }
  return a.size() == b.size();
}

class SafetensorsFileTest : public ::testing::Test {
 protected:
  [[nodiscard]] std::string file() const { return (folder_ / "a.safetensors").string(); }
  /// How a file of these bytes is refused.
  void expect_refused(const std::string& bytes, Errc code, const std::string& why) const {
    test::replace_file(file(), bytes);
    EXPECT_THAT([&] { static_cast<void>(SafetensorsReader(file(), Verify::kFull).state()); }, ThrowsError(code, AllOf(StartsWith(file() + ": "), HasSubstr(why), Not(HasSubstr("\n"))))) << bytes;
  }
  /// The same of a file without libmarlin's hashes.
  void expect_header_refused(const std::string& header, const std::string& why, const std::string& data = {}, Errc code = Errc::kCorrupt) const {
    expect_refused(safetensors_bytes(header, data), code, why);
  }

  TempFolder folder_;
};

// ---- written and read

TEST_F(SafetensorsFileTest, EveryDtypeThatAllReadersKnowComesBackBitForBit) {
  using enum at::ScalarType;
  std::vector<NamedTensor> tensors;
  for (const auto type : {Bool, Byte, Char, Float8_e5m2, Float8_e4m3fn, Float8_e8m0fnu, Short, UInt16, Half, BFloat16, Int, UInt32, Float, Long, UInt64, Double}) {
    tensors.push_back({c10::toString(type), patterned(type)});
  }
  const SafetensorsWritten written = write_safetensors(file(), tensors);
  EXPECT_EQ(written.size_bytes, content_of(file()).size());
  for (const Verify verify : {Verify::kFull, Verify::kLazy, Verify::kOff}) {
    SafetensorsReader reader(file(), verify);
    EXPECT_TRUE(same_tensors(reader.state(), state_of(tensors)));
    EXPECT_EQ(reader.written().xxh3_128, written.xxh3_128);
    EXPECT_EQ(reader.verified(), verify == Verify::kFull ? Verified::kHashes : verify == Verify::kLazy ? Verified::kAsTaken : Verified::kNothing);
  }
}

TEST_F(SafetensorsFileTest, ViewsAndOddShapesAreWrittenAsTheirValues) {
  const at::Tensor base = torch::arange(24.).reshape({4, 6});
  const at::Tensor complex = torch::complex(torch::arange(3.), torch::arange(3.) + 1);
  const std::vector<NamedTensor> tensors = {{"base", base}, {"same", base}, {"slice", base.slice(0, 1, 3).slice(1, 2, 5)}, {"transposed", base.t()}, {"steps", base.slice(1, 0, 6, 2)},
      {"expanded", torch::ones({1}).expand({5})}, {"scalar", torch::tensor(3.5f)}, {"empty", torch::empty({2, 0, 3})}, {"none", torch::empty({0}, at::kByte)},
      {"negative", at::imag(complex.conj())}, {"parameter", torch::ones({2}, torch::requires_grad())}, {"odd", torch::arange(3, at::kByte)}, {"", torch::ones({1})},
      {"\u00e9 \"quoted\" \\ \n", torch::tensor(-0.0)}};
  write_safetensors(file(), tensors, {{"format", "pt"}, {"\u6f22", "a \"text\"\n"}});
  SafetensorsReader reader(file());
  const StateDict state = reader.state();
  EXPECT_TRUE(same_tensors(state, state_of(tensors)));
  EXPECT_THAT(reader.metadata(), ElementsAre(Pair("format", "pt"), Pair("\u6f22", "a \"text\"\n")));
  EXPECT_FALSE(state.at("parameter").as_tensor().requires_grad());
  EXPECT_TRUE(reader.tensor("transposed").is_contiguous());
  EXPECT_THAT([&] { static_cast<void>(reader.tensor("nosuch")); }, ThrowsError(Errc::kNotFound, HasSubstr("holds no tensor 'nosuch'")));
}

TEST_F(SafetensorsFileTest, NoTensorIsAFileToo) {
  for (const Hashes hashes : {Hashes::kXxh3, Hashes::kNone}) {
    write_safetensors(file(), {}, {}, hashes);
    EXPECT_TRUE(SafetensorsReader(file()).state().empty());
  }
}

TEST_F(SafetensorsFileTest, EqualTensorsGiveEqualBytesWhateverTheirOrder) {
  const NamedTensor a{"a", torch::ones({3})}, b{"b", torch::ones({2}, at::kDouble)}, c{"c", torch::ones({1}, at::kByte)};
  write_safetensors(file(), {a, b, c}, {{"k", "v"}});
  const std::string first = content_of(file());
  write_safetensors(file(), {c, b, a}, {{"k", "v"}});
  EXPECT_EQ(content_of(file()), first);
  EXPECT_EQ(first.size() % 8, 5U) << "8 + header, padded, then 16, 12 and 1 bytes";
}

TEST_F(SafetensorsFileTest, LargeOnesAreWrittenByTwoThreadsToTheSameBytes) {
  std::vector<NamedTensor> tensors;
  for (int i = 0; i < 5; ++i) tensors.push_back({std::to_string(i), torch::rand({600'000 + i})});
  write_safetensors(file(), tensors, {}, Hashes::kXxh3, Durability::kUnsynced);
  EXPECT_TRUE(same_tensors(SafetensorsReader(file()).state(), state_of(tensors)));
  const std::string first = content_of(file());
  write_safetensors(file(), tensors, {}, Hashes::kXxh3, Durability::kUnsynced);
  EXPECT_EQ(content_of(file()), first);
}

TEST_F(SafetensorsFileTest, WithoutHashesTheMetadataIsWhatWasGiven) {
  write_safetensors(file(), {{"w", torch::ones({2})}}, {{"format", "pt"}}, Hashes::kNone);
  SafetensorsReader reader(file());
  EXPECT_THAT(content_of(file()), HasSubstr(R"({"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})"));
  EXPECT_EQ(reader.written().xxh3_128, "");
  EXPECT_EQ(reader.verified(), Verified::kNothing) << "nothing is there to compare with";
  EXPECT_TRUE(same_tensors(reader.state(), {{"w", torch::ones({2})}}));
}

TEST_F(SafetensorsFileTest, WhatIsWrittenToATensorDoesNotReachTheFile) {
  write_safetensors(file(), {{"w", torch::ones({2})}});
  const std::string before = content_of(file());
  SafetensorsReader reader(file());
  reader.tensor("w").fill_(7);
  EXPECT_TRUE(reader.tensor("w").equal(torch::full({2}, 7.f))) << "seen by who takes it again";
  EXPECT_EQ(content_of(file()), before);
}

TEST_F(SafetensorsFileTest, WhatCannotBeWrittenIsRefusedByNameAndNothingIsWritten) {
  const auto refuse = [&](const NamedTensor& entry, const std::string& why) {
    EXPECT_THAT([&] { write_safetensors(file(), {{"fine", torch::ones({1})}, entry}); }, ThrowsError(Errc::kUnsupported, AllOf(StartsWith("tensor '"), HasSubstr(why))));
  };
  refuse({"wave", torch::ones({2}, at::kComplexDouble)}, "'wave': safetensors has no dtype complex128");
  refuse({"wave", torch::ones({2}, at::kComplexFloat)}, "'wave': many readers of safetensors know no dtype complex64");
  refuse({"q", torch::quantize_per_tensor(torch::ones({2}), 0.1, 0, at::kQInt8)}, "'q': a quantised tensor");
  refuse({"s", torch::eye(3).to_sparse()}, "'s': a tensor of layout Sparse");
  refuse({"deep", torch::ones(std::vector<int64_t>(65, 1))}, "'deep': has 65 dimensions; readers take 64");
  refuse({"m", torch::empty({2}, at::kMeta)}, "'m': a tensor without memory");
  refuse({"u", at::Tensor()}, "'u': an undefined tensor");
  refuse({"fine", torch::ones({1})}, "'fine': there are two of this name");
  refuse({"__metadata__", torch::ones({1})}, "keeps this name");
  refuse({"\xff", torch::ones({1})}, "not UTF-8");
  const auto refuse_metadata = [&](const SafetensorsMetadata& metadata, Errc code) { EXPECT_THAT([&] { write_safetensors(file(), {}, metadata); }, ThrowsError(code, HasSubstr("metadata '"))); };
  refuse_metadata({{"a", "1"}, {"a", "2"}}, Errc::kInvalidArgument);
  refuse_metadata({{"marlin_xxh3_128", "1"}}, Errc::kInvalidArgument);
  refuse_metadata({{"a", "\xff"}}, Errc::kUnsupported);
  EXPECT_THAT(names_in(folder_.path()), IsEmpty());
}

TEST_F(SafetensorsFileTest, WhicheverCallOfTheFileSystemFailsTheOldFileStays) {
  const StateDict old = {{"w", torch::ones({2})}};
  for (int64_t call = 0;; ++call) {
    write_safetensors(file(), {{"w", torch::ones({2})}});
    testing::FaultyFileSystem fs;
    fs.fail_call(call, ENOSPC);
    try {
      write_safetensors(file(), {{"w", torch::zeros({2})}}, {}, Hashes::kXxh3, Durability::kDurable, fs);
      EXPECT_GT(call, 8);
      break;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Errc::kIo);
    }
    const bool renamed = fs.log().back() == testing::FsOp::kSyncDirectory;
    EXPECT_TRUE(same_tensors(SafetensorsReader(file()).state(), renamed ? StateDict{{"w", torch::zeros({2})}} : old)) << call;
    EXPECT_THAT(names_in(folder_.path()), ElementsAre("a.safetensors"));
  }
}

// ---- files of others

TEST_F(SafetensorsFileTest, WhatOthersMayWriteIsRead) {
  const std::string floats("\0\0\x80\x3f\0\0\0\x40", 8);  // 1, 2
  const auto read = [&](const std::string& header, const std::string& data) {
    write_file(file(), safetensors_bytes(header, data));
    return SafetensorsReader(file()).state();
  };
  const at::Tensor two = torch::tensor({1.f, 2.f});
  EXPECT_TRUE(read("{}", "").empty());
  EXPECT_TRUE(same_tensors(read(R"({"w":{"data_offsets":[0,8],"shape":[2],"dtype":"F32"}}   )", floats), {{"w", two}}));
  EXPECT_TRUE(same_tensors(read("{ \"w\" :\n{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[0,8]}, \"__metadata__\":{}}", floats), {{"w", two.reshape({2, 1})}}));
  // Not aligned: after a byte, and by a header of odd length.
  EXPECT_TRUE(same_tensors(read(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[1,9]},"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "\7" + floats),
                           {{"w", two}, {"b", torch::full({1}, 7, at::kByte)}}));
  // Names that order nothing: bytes do.
  EXPECT_TRUE(same_tensors(read(R"({"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"c":{"dtype":"F64","shape":[0],"data_offsets":[8,8]}})", floats),
                           {{"a", torch::tensor(1.f)}, {"b", torch::tensor({2.f})}, {"c", torch::empty({0}, at::kDouble)}}));
  EXPECT_TRUE(same_tensors(read(R"({"w":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}})", floats), {{"w", torch::complex(torch::ones({1}), torch::full({1}, 2.f))}}));
}

TEST_F(SafetensorsFileTest, HostileHeadersAreRefusedByTheirReason) {
  const auto entry = [](const std::string& rest) { return R"({"w":{)" + rest + "}}"; };
  const std::string eight(8, '\1');
  expect_refused("", Errc::kCorrupt, "too short");
  expect_refused("1234567", Errc::kCorrupt, "too short");
  expect_refused(std::string(8, '\xff') + "{}", Errc::kCorrupt, "header: of 18446744073709551615 bytes, more than the format allows");
  expect_refused(std::string("\x01\xe1\xf5\x05\0\0\0\0", 8) + "{}", Errc::kCorrupt, "of 100000001 bytes, more than the format allows");
  expect_refused(std::string("\3\0\0\0\0\0\0\0", 8) + "{}", Errc::kCorrupt, "reaches past the end");
  const std::map<std::string, std::string> not_json = {{"", "brace"}, {"[]", "brace"}, {" {}", "brace"}, {"\xef\xbb\xbf{}", "brace"}, {"{", "not JSON"}, {"{}x", "not JSON"}, {"{\"\xff\":1}", "not JSON"},
      {"{\"a\":1e999}", "not JSON"}, {"{} \1", "not JSON"}, {std::string("{}\0", 3), "not JSON"}};
  for (const auto& [header, why] : not_json) expect_header_refused(header, why);
  expect_header_refused(R"({"w":1})", "tensor 'w': is no JSON object");
  expect_header_refused(R"({"w":[]})", "tensor 'w': is no JSON object");
  expect_header_refused(R"({"w":null})", "tensor 'w': is no JSON object");
  expect_header_refused(R"({"__metadata__":1})", "header: is no JSON object");
  expect_header_refused(R"({"__metadata__":{"a":1}})", "metadata 'a' is not text");
  expect_header_refused(R"({"__metadata__":{"a":{}}})", "metadata 'a' is not text");
  expect_header_refused(R"({"__metadata__":{"a":"","a":""}})", "metadata 'a' is there twice");
  expect_header_refused(R"({"__metadata__":{},"__metadata__":{}})", "two of this name");
  expect_header_refused(entry(""), "lacks one of dtype, shape and data_offsets");
  expect_header_refused(entry(R"("dtype":"F32","shape":[2])"), "lacks one of");
  expect_header_refused(entry(R"("dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1)"), "'more' is no part of the format");
  expect_header_refused(entry(R"("dtype":"F32","dtype":"F32","shape":[2])"), "dtype is there twice");
  expect_header_refused(entry(R"("dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[0],"data_offsets":[8,8])"), "tensor 'w': there are two of this name", eight);
  expect_header_refused(entry(R"("dtype":"F31","shape":[2],"data_offsets":[0,8])"), "dtype 'F31' is none that is read here", eight, Errc::kUnsupported);
  expect_header_refused(entry(R"("dtype":"F4","shape":[16],"data_offsets":[0,8])"), "dtype 'F4'", eight, Errc::kUnsupported);
  expect_header_refused(entry(R"("dtype":["F32"])"), "dtype is not what it must be");
  expect_header_refused(entry(R"("shape":"F32")"), "shape is not what it must be");
  expect_header_refused(entry(R"("shape":2)"), "shape is not what it must be");
  expect_header_refused(entry(R"("shape":[-1])"), "shape is not what it must be");
  expect_header_refused(entry(R"("shape":[1.0])"), "shape is not what it must be");
  expect_header_refused(entry(R"("shape":["1"])"), "shape is not what it must be");
  expect_header_refused(entry(R"("shape":[[1]])"), "shape is not what it must be");
  expect_header_refused(entry(R"("shape":[9223372036854775808])"), "shape: 9223372036854775808 is too large");
  expect_header_refused(entry(R"("shape":[99999999999999999999])"), "shape is not what it must be");
  std::string ones = "1";
  for (int i = 0; i < 64; ++i) ones += ",1";
  expect_header_refused(entry("\"shape\":[" + ones + "]"), "more than 64 numbers");
  expect_header_refused(entry(R"("data_offsets":[0])"), "data_offsets are not two");
  expect_header_refused(entry(R"("data_offsets":[0,1,2])"), "data_offsets are not two");
  const auto placed = [&](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"("w":{"dtype":")" + dtype + R"(","shape":[)" + shape + R"(],"data_offsets":[)" + offsets + "]}";
  };
  const auto one = [&](const std::string& shape, const std::string& offsets) { return "{" + placed("F32", shape, offsets) + "}"; };
  expect_header_refused(one("2", "8,0"), "reach past the end", eight);
  expect_header_refused(one("2", "0,9"), "reach past the end", eight);
  expect_header_refused(one("2", "0,9223372036854775807"), "reach past the end", eight);
  expect_header_refused(one("1", "0,8"), "has 8 bytes, its shape says 4", eight);
  expect_header_refused(one("3", "0,8"), "has 8 bytes, its shape says 12", eight);
  expect_header_refused(one("2,0", "0,8"), "has 8 bytes, its shape says 0", eight);
  expect_header_refused(one("4294967296,4294967296", "0,8"), "its shape is too large", eight);
  expect_header_refused(one("4611686018427387904,4", "0,0"), "its shape is too large");
  expect_header_refused(one("4611686018427387904", "0,0"), "its shape is too large");
  expect_header_refused(one("0,4611686018427387904,4", "0,0"), "its shape is too large");
  expect_header_refused(one("1", "4,8"), "bytes before its own that belong to none", eight);
  expect_header_refused(one("1", "0,4"), "the file: has 4 bytes more than its tensors", eight);
  expect_header_refused("{}", "the file: has 8 bytes more than its tensors", eight);
  const std::string other = R"("v":{"dtype":"F32","shape":[1],"data_offsets":[)";
  expect_header_refused("{" + other + "0,4]}," + placed("F32", "2", "0,8") + "}", "overlap", eight);
  expect_header_refused("{" + other + "2,6]}," + placed("F32", "1", "0,4") + "}", "overlap", eight);
  expect_header_refused(R"({"__metadata__":{"marlin_xxh3_128":"0"}})", "its bytes do not match its hash");
  expect_header_refused(R"({"__metadata__":{"a":"","marlin_xxh3_128":"0"}})", "not as libmarlin wrote it");
  expect_header_refused(R"({"__metadata__":{"marlin_tensors_xxh3_128":""}})", "not as libmarlin wrote it");
}

TEST_F(SafetensorsFileTest, DeepNestingIsRefusedWithoutFollowingIt) {
  expect_header_refused("{\"w\":{\"shape\":" + std::string(1'000'000, '['), "shape is not what it must be");
  expect_header_refused("{\"w\":" + std::string(1'000'000, '{'), "not JSON");
}

TEST_F(SafetensorsFileTest, WhatIsNoFileIsTold) {
  EXPECT_THAT([&] { SafetensorsReader reader(folder_ / "none"); }, ThrowsError(Errc::kNotFound, HasSubstr("none: open: No such file")));
  EXPECT_THAT([&] { SafetensorsReader reader(folder_.path()); }, ThrowsError(Errc::kIo, HasSubstr("Is a directory")));
}

// ---- damage

std::vector<NamedTensor> small_tensors() {
  return {{"w", torch::arange(6.).reshape({2, 3})}, {"steps", torch::tensor(7)}, {"mask", torch::ones({3}, at::kBool)}, {"empty", torch::empty({0})}};
}

TEST_F(SafetensorsFileTest, EveryTruncationAndEveryExtensionIsCorrupt) {
  write_safetensors(file(), small_tensors(), {{"format", "pt"}});
  const std::string whole = content_of(file());
  for (size_t size = 0; size < whole.size(); ++size) {
    expect_refused(whole.substr(0, size), Errc::kCorrupt, "");
    ASSERT_FALSE(HasFailure()) << "cut to " << size << " bytes";
  }
  expect_refused(whole + '\0', Errc::kCorrupt, "1 bytes more than its tensors");
}

TEST_F(SafetensorsFileTest, EveryFlippedBitIsCorrupt) {
  write_safetensors(file(), small_tensors(), {{"format", "pt"}});
  const std::string whole = content_of(file());
  for (size_t bit = 0; bit < whole.size() * 8; ++bit) {
    std::string changed = whole;
    changed[bit / 8] = static_cast<char>(changed[bit / 8] ^ (1 << (bit % 8)));
    expect_refused(changed, Errc::kCorrupt, "");
    ASSERT_FALSE(HasFailure()) << "bit " << bit % 8 << " of byte " << bit / 8;
  }
}

TEST_F(SafetensorsFileTest, VerifySaysWhenTensorsAreCompared) {
  write_safetensors(file(), {{"a", torch::ones({4})}, {"b", torch::ones({4})}});
  std::string changed = content_of(file());
  changed.back() = static_cast<char>(changed.back() ^ 1);  // of b
  expect_refused(changed, Errc::kCorrupt, "tensor 'b': its bytes do not match their hash");
  SafetensorsReader lazy(file(), Verify::kLazy);
  EXPECT_TRUE(lazy.tensor("a").equal(torch::ones({4})));
  EXPECT_THAT([&] { static_cast<void>(lazy.tensor("b")); }, ThrowsError(Errc::kCorrupt, HasSubstr("tensor 'b': its bytes do not match")));
  EXPECT_THAT([&] { static_cast<void>(lazy.state()); }, ThrowsError(Errc::kCorrupt, HasSubstr("tensor 'b': its bytes do not match")));
  EXPECT_FALSE(SafetensorsReader(file(), Verify::kOff).tensor("b").equal(torch::ones({4})));
}

TEST_F(SafetensorsFileTest, TheHeaderIsComparedWhateverVerifySays) {
  write_safetensors(file(), {{"a", torch::ones({4})}});
  std::string changed = content_of(file());
  changed[changed.find("\"a\"") + 1] = 'b';
  write_file(file(), changed);
  for (const Verify verify : {Verify::kFull, Verify::kLazy, Verify::kOff}) {
    EXPECT_THAT([&] { SafetensorsReader reader(file(), verify); }, ThrowsError(Errc::kCorrupt, HasSubstr("header: its bytes do not match its hash")));
  }
}

}  // namespace
}  // namespace marlin
