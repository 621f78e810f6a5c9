#include "marlin/core/data/tensor_stacker.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

namespace marlin::detail {
namespace {

at::Tensor stacked(const std::vector<at::Tensor>& rows) {
  TensorStacker stacker(static_cast<int64_t>(rows.size()));
  for (const at::Tensor& row : rows) stacker.add(row);
  return stacker.stacked();
}

void expect_as_at_stack(const std::vector<at::Tensor>& rows) {
  const at::Tensor expected = at::stack(rows), delivered = stacked(rows);
  EXPECT_EQ(delivered.sizes(), expected.sizes());
  EXPECT_EQ(delivered.strides(), expected.strides());
  EXPECT_EQ(delivered.scalar_type(), expected.scalar_type());
  EXPECT_EQ(delivered.requires_grad(), expected.requires_grad());
  EXPECT_TRUE(torch::equal(delivered, expected)) << delivered << "\nis not\n" << expected;
}

TEST(TensorStackerTest, StacksAsAtStackDoes) {
  torch::manual_seed(1);
  expect_as_at_stack({torch::rand({2, 3})});
  expect_as_at_stack({torch::rand({2, 3}), torch::rand({2, 3}), torch::rand({2, 3})});
  expect_as_at_stack({torch::tensor(1), torch::tensor(2)});
  expect_as_at_stack({torch::rand({0, 3}), torch::rand({0, 3})});
  expect_as_at_stack({torch::tensor({true, false}), torch::tensor({false, true})});
  expect_as_at_stack({torch::rand({2}, torch::kBFloat16), torch::rand({2}, torch::kBFloat16)});
  expect_as_at_stack({torch::rand({8}).slice(0, 2, 5), torch::rand({8}).slice(0, 5)});   // views with an offset
}

TEST(TensorStackerTest, RowsThatAreNotPlainAreStackedAsAtStackDoes) {
  torch::manual_seed(1);
  const at::Tensor plain = torch::rand({3, 4}), turned = torch::rand({4, 3}).t();
  expect_as_at_stack({turned, plain});
  expect_as_at_stack({plain, plain, turned});
  expect_as_at_stack({turned, turned});
  expect_as_at_stack({plain, torch::ones({3, 4}, torch::kInt64), torch::ones({3, 4}, torch::kFloat64)});
  expect_as_at_stack({torch::ones({2}, torch::kInt64), torch::rand({2})});
  const at::Tensor complex = torch::rand({2}, torch::kComplexFloat);
  expect_as_at_stack({complex, complex.conj()});
  expect_as_at_stack({torch::rand({2}), torch::imag(complex.conj()).contiguous(), torch::_neg_view(torch::rand({2}))});
  const at::Tensor deep = torch::rand({3, 4, 5}).contiguous().permute({2, 0, 1});
  expect_as_at_stack({deep, deep});
}

TEST(TensorStackerTest, GradientsFlowToTheRows) {
  const at::Tensor plain = torch::rand({3}), leaf = torch::rand({3}, torch::requires_grad());
  stacked({plain, leaf, plain}).sum().backward();
  EXPECT_TRUE(torch::equal(leaf.grad(), torch::ones({3})));
}

TEST(TensorStackerTest, RowsOfSeveralShapesFailAsInAtStack) {
  EXPECT_THROW((void)stacked({torch::rand({3}), torch::rand({4})}), c10::Error);
  EXPECT_THROW((void)stacked({torch::rand({3}), at::Tensor()}), c10::Error);
  EXPECT_THROW((void)stacked({at::Tensor()}), c10::Error);
}

TEST(TensorStackerTest, WhatWasAddedMayChangeAfterwards) {
  TensorStacker stacker(2);
  at::Tensor row = torch::zeros({2});
  stacker.add(row);
  row.fill_(1);
  stacker.add(row);
  EXPECT_TRUE(torch::equal(stacker.stacked(), torch::tensor({0., 0., 1., 1.}).to(torch::kFloat32).view({2, 2})));
}

}  // namespace
}  // namespace marlin::detail
