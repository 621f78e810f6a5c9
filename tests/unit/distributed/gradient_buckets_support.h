// What the tests of GradientBuckets share.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <functional>

#include "backends/gradient_buckets.h"

namespace marlin::testing {

inline constexpr GradientBucketsOptions kOneEach = {.bucket_bytes = 1, .first_bucket_bytes = 1};
inline constexpr GradientBucketsOptions kHuge = {.bucket_bytes = int64_t{1} << 40, .first_bucket_bytes = int64_t{1} << 40};
inline const GradientBuckets::BeforeFirst kGo = {};

inline at::Tensor parameter(at::IntArrayRef sizes, double value = 1.0, at::ScalarType type = at::kFloat) { return at::full(sizes, value, type).requires_grad_(); }

// What backward does when it comes by.
struct OnBackward : torch::autograd::Function<OnBackward> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input, const std::function<void()>* call) {
    context->saved_data["call"] = reinterpret_cast<int64_t>(call);
    return input.view_as(input);
  }
  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* context, torch::autograd::tensor_list gradients) {
    (*reinterpret_cast<const std::function<void()>*>(context->saved_data["call"].toInt()))();
    return {gradients[0], at::Tensor()};
  }
};

}  // namespace marlin::testing
