#include "trainer/generators.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>

#include <algorithm>
#include <mutex>

#include "marlin/sdk/text.h"

namespace marlin {
namespace {

at::Tensor state_of(at::Generator generator) {
  const std::lock_guard lock(generator.mutex());
  return generator.get_state();
}

bool set_state(at::Generator generator, const Value& state) {
  const auto* tensor = state.get_if<at::Tensor>();
  const at::Tensor present = state_of(generator);
  if (tensor == nullptr || !tensor->defined() || tensor->scalar_type() != present.scalar_type() || tensor->sizes() != present.sizes()) return false;
  const std::lock_guard lock(generator.mutex());
  try {
    generator.set_state(tensor->contiguous());
  } catch (const c10::Error&) {  // of the right size, but no state
    return false;
  }
  return true;
}

int64_t num_gpus(at::Device device) { return device.is_cuda() ? at::detail::getCUDAHooks().deviceCount() : 0; }

at::Generator gpu_generator(int64_t index) {
  return at::globalContext().defaultGenerator(at::Device(at::kCUDA, static_cast<at::DeviceIndex>(index)));
}

}  // namespace

StateDict generators_state(at::Device device) {
  StateDict state = {{"cpu", state_of(at::detail::getDefaultCPUGenerator())}};
  if (!device.is_cuda()) return state;
  List gpus;
  for (int64_t i = 0; i < num_gpus(device); ++i) gpus.items.emplace_back(state_of(gpu_generator(i)));
  state.set("cuda", std::move(gpus));
  return state;
}

std::vector<std::string> set_generators_state(const StateDict& state, at::Device device) {
  std::vector<std::string> problems;
  const Value* cpu = state.find("cpu");
  if (cpu == nullptr || !set_state(at::detail::getDefaultCPUGenerator(), *cpu)) {
    problems.push_back("the checkpoint's generator state is of another device kind or another LibTorch than this CPU's: random numbers do not go on as they would have");
  }
  const Value* cuda = state.find("cuda");
  const auto* theirs = cuda == nullptr ? nullptr : cuda->get_if<List>();
  const int64_t ours = num_gpus(device);
  if (theirs == nullptr && ours == 0) return problems;
  const int64_t saved = theirs == nullptr ? 0 : static_cast<int64_t>(theirs->items.size());
  bool all = saved == ours;
  for (int64_t i = 0; i < std::min(saved, ours); ++i) all &= set_state(gpu_generator(i), theirs->items[static_cast<size_t>(i)]);
  if (!all) {
    problems.push_back(concat("the checkpoint has generator states of ", saved, " GPUs and this run, on ", device.str(), ", uses ", ours, ": random numbers do not go on as they would have"));
  }
  return problems;
}

void GeneratorMark::take() {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  auto* cpu = static_cast<at::CPUGeneratorImpl*>(generator.unsafeGetGeneratorImpl());
  const std::lock_guard lock(generator.mutex());
  engine_ = cpu->engine();
  next_float_ = cpu->next_float_normal_sample();
  next_double_ = cpu->next_double_normal_sample();
}

at::Tensor GeneratorMark::state() const {
  at::CPUGeneratorImpl generator;
  generator.set_engine(engine_);
  generator.set_next_float_normal_sample(next_float_);
  generator.set_next_double_normal_sample(next_double_);
  return at::Tensor::wrap_tensor_impl(generator.get_state());
}

}  // namespace marlin
