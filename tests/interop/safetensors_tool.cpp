// The C++ half of safetensors_interop.py.
//
//   safetensors_tool write FILE            writes the tensors that the script knows, too
//   safetensors_tool rewrite IN OUT        reads a file and writes what it read, with the same metadata
//   safetensors_tool checkpoint DIR        saves a checkpoint of epoch 3 and a model by SafetensorsCheckpointer
//   safetensors_tool archive DIR OUT       loads the newest checkpoint of such a folder and writes its state as a .pt file
// Exit status: 0; 1 and "<code>: <message>" on standard output if libmarlin refuses.
#include <torch/torch.h>

#include <iostream>
#include <limits>
#include <string_view>

#include "marlin/checkpointers/archive.h"
#include "marlin/checkpointers/default_checkpointer.h"
#include "marlin/checkpointers/safetensors.h"
#include "marlin/checkpointers/safetensors_checkpointer.h"
#include "marlin/sdk/error.h"

namespace marlin {
namespace {

at::Tensor patterned(at::ScalarType type, int64_t size) {
  at::Tensor bytes = torch::arange(size * static_cast<int64_t>(c10::elementSize(type)), at::kInt).mul_(37).add_(11);
  bytes = (type == at::kBool ? bytes.bitwise_and(1) : bytes.bitwise_and(255)).to(at::kByte);
  return at::empty({0}, at::TensorOptions().dtype(type)).set_(bytes.storage(), 0, {size}, {1});
}

std::vector<NamedTensor> tensors() {
  using enum at::ScalarType;
  const std::pair<const char*, at::ScalarType> types[] = {
      {"float32", Float}, {"float64", Double}, {"float16", Half}, {"bfloat16", BFloat16}, {"int64", Long}, {"int32", Int}, {"int16", Short}, {"int8", Char},
      {"uint8", Byte}, {"bool", Bool}, {"uint16", UInt16}, {"uint32", UInt32}, {"uint64", UInt64}, {"float8_e5m2", Float8_e5m2},
      {"float8_e4m3fn", Float8_e4m3fn}, {"float8_e8m0fnu", Float8_e8m0fnu}};
  std::vector<NamedTensor> result;
  for (const auto& [name, type] : types) result.push_back({name, patterned(type, 6)});
  const at::Tensor base = torch::arange(24.).reshape({4, 6});
  result.push_back({"base", base});
  result.push_back({"transposed", base.t()});
  result.push_back({"slice", base.slice(0, 1, 3).slice(1, 2, 5)});
  result.push_back({"scalar", torch::tensor(3.5f)});
  result.push_back({"empty", torch::empty({2, 0, 3})});
  result.push_back({"\u00e9\u6f22 \"quoted\" \\ \n", torch::ones({1})});
  return result;
}

Checkpoint checkpoint() {
  Checkpoint result;
  result.module_interface_state = {{"net.0.weight", torch::arange(6.).reshape({2, 3})}, {"net.0.bias", torch::ones({2})}};
  const StateDict moments = {{0, StateDict{{"step", torch::tensor(4.f)}, {"exp_avg", torch::full({2, 3}, 0.5)}}}};
  result.trainer_state = {{"last_epoch", 3}, {"lr", 0.1}, {"best", std::numeric_limits<double>::infinity()}, {"betas", Tuple{{0.9, 0.999}}}, {"optimizers", List{{StateDict{{"state", moments}}}}}};
  result.trainer_backend_state = {{"global_step_completed", 40}};
  return result;
}

int run(int argc, char** argv) {
  const std::string_view command = argc > 1 ? argv[1] : "";
  if (command == "write" && argc == 3) {
    write_safetensors(argv[2], tensors(), {{"format", "pt"}, {"note", "\u00e9 \"quoted\""}});
    return 0;
  }
  if (command == "rewrite" && argc == 4) {
    SafetensorsReader reader(argv[2]);
    std::vector<NamedTensor> read;
    for (const TensorInfo& info : reader.tensors()) read.push_back({info.path, reader.tensor(info.path)});
    write_safetensors(argv[3], read, reader.metadata());
    return 0;
  }
  if (command == "checkpoint" && argc == 3) {
    SafetensorsCheckpointer saves({.save_dir = argv[2]});
    saves.save(checkpoint(), {.index = 3, .epoch = 3, .global_step = 40, .run_id = "r1"});
    saves.save_model(checkpoint().module_interface_state, 3);
    return 0;
  }
  if (command == "archive" && argc == 4) {
    write_checkpoint(argv[3], SafetensorsCheckpointer({.load_dir = argv[2]}).load({.required = true}), {.index = 3});
    return 0;
  }
  std::cerr << "usage: safetensors_tool write FILE | rewrite IN OUT | checkpoint DIR | archive DIR OUT\n";
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
