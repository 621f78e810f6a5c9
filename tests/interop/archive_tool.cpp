// The C++ half of archive_interop.py.
//
//   archive_tool write FILE          writes the state that the script knows, too
//   archive_tool rewrite IN OUT      reads a file and writes what it read
// Exit status: 0; 1 and "<code>: <message>" on standard output if libmarlin refuses.
#include <torch/torch.h>

#include <iostream>
#include <limits>
#include <string_view>

#include "marlin/checkpointers/archive.h"
#include "marlin/sdk/error.h"

namespace marlin {
namespace {

at::Tensor patterned(at::ScalarType type, int64_t size) {
  at::Tensor bytes = torch::arange(size * static_cast<int64_t>(c10::elementSize(type)), at::kInt).mul_(37).add_(11);
  bytes = (type == at::kBool ? bytes.bitwise_and(1) : bytes.bitwise_and(255)).to(at::kByte);
  return at::empty({0}, at::TensorOptions().dtype(type)).set_(bytes.storage(), 0, {size}, {1});
}

StateDict dtypes() {
  using enum at::ScalarType;
  const std::pair<const char*, at::ScalarType> types[] = {
      {"float32", Float}, {"float64", Double}, {"float16", Half}, {"bfloat16", BFloat16}, {"int64", Long}, {"int32", Int}, {"int16", Short},
      {"int8", Char}, {"uint8", Byte}, {"bool", Bool}, {"complex64", ComplexFloat}, {"complex128", ComplexDouble}, {"complex32", ComplexHalf},
      {"uint16", UInt16}, {"uint32", UInt32}, {"uint64", UInt64}, {"float8_e5m2", Float8_e5m2}, {"float8_e4m3fn", Float8_e4m3fn},
      {"float8_e5m2fnuz", Float8_e5m2fnuz}, {"float8_e4m3fnuz", Float8_e4m3fnuz}, {"float8_e8m0fnu", Float8_e8m0fnu},
      {"float4_e2m1fn_x2", Float4_e2m1fn_x2}, {"bcomplex32", BComplex32}, {"bits8", Bits8}, {"bits16", Bits16}, {"bits1x8", Bits1x8},
      {"bits2x4", Bits2x4}, {"bits4x2", Bits4x2}};
  StateDict result;
  for (const auto& [name, type] : types) result.set(name, patterned(type, 6));
  return result;
}

StateDict tensors() {
  const at::Tensor base = torch::arange(24.).reshape({4, 6});
  const at::Tensor complex = torch::complex(torch::arange(3.), torch::arange(3.) + 1);
  const at::Tensor odd = torch::arange(10, at::kByte);
  return {
      {"base", base},
      {"slice", base.slice(0, 1, 3).slice(1, 2, 5)},
      {"transposed", base.t()},
      {"steps", base.slice(1, 0, 6, 2)},
      {"as int", base.view(at::kInt)},
      {"expanded", torch::ones({1}).expand({5})},
      {"scalar", torch::tensor(3.5f)},
      {"empty", torch::empty({2, 0, 3})},
      {"parameter", torch::ones({2}, torch::requires_grad())},
      {"conj", complex.conj()},
      {"neg", at::imag(complex.conj())},
      {"odd", at::empty({0}).set_(odd.storage(), 0, {2}, {1})},
      {"list", List{{base[1], torch::zeros({2})}}},
  };
}

StateDict values() {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  return {
      {"none", nullptr},
      {"bools", Tuple{{true, false}}},
      {"ints", List{{0, 255, 256, 65535, 65536, -1, INT32_MAX, INT32_MIN, int64_t{1} << 31, INT64_MAX, INT64_MIN}}},
      {"floats", Tuple{{0.1, -0.0, kInf, -kInf, std::numeric_limits<double>::quiet_NaN()}}},
      {"text", "\u00e9\u6f22\U0001f600"},
      {"empty", Tuple{{"", List{}, Tuple{}, StateDict()}}},
      {"keys", StateDict{{0, 1}, {-5, 2}, {"0", 3}}},
      {"nested", Tuple{{1, Tuple{{2.5, "x"}}, List{{StateDict{{"k", List{{1}}}}}}}}},
  };
}

StateDict ordered() {
  StateDict metadata = {{"", StateDict{{"version", 1}}}, {"1", StateDict{{"version", 2}}}};
  metadata.ordered_dict = true;
  StateDict result = {{"weight", torch::ones({2})}};
  result.ordered_dict = true;
  result.attributes = std::make_shared<const StateDict>(StateDict{{"_metadata", metadata}});
  return result;
}

int run(int argc, char** argv) {
  const std::string_view command = argc > 1 ? argv[1] : "";
  if (command == "write" && argc == 3) {
    CommitRecord record{.kind = "full", .unit = "epoch", .index = 3, .epoch = 3, .global_step = 40, .cause = "period", .run_id = "r1"};
    record.metrics.set("val/loss", 0.25);
    record.metrics.set("val/nan", std::numeric_limits<double>::quiet_NaN());
    write_archive(argv[2], {{"dtypes", dtypes()}, {"tensors", tensors()}, {"values", values()}, {"ordered", ordered()}}, record);
    return 0;
  }
  if (command == "rewrite" && argc == 4) {
    const Archive archive = read_archive(argv[2]);
    write_archive(argv[3], archive.root, archive.record.value_or(CommitRecord{.kind = "model", .unit = "epoch"}));
    return 0;
  }
  std::cerr << "usage: archive_tool write FILE | rewrite IN OUT\n";
  return 2;
}

}  // namespace
}  // namespace marlin

int main(int argc, char** argv) {
  try {
    return marlin::run(argc, argv);
  } catch (const marlin::Error& error) {
    std::cout << marlin::to_string(error.code()) << ": " << error.what() << "\n";
    return 1;
  }
}
