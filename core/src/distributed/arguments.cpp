#include "distributed/arguments.h"

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin::distributed {

void check_tensor(const at::Tensor& tensor) {
  if (!tensor.defined()) throw Error(Errc::kInvalidArgument, "a tensor for all ranks is undefined; give one of the same type and size on every rank");
  if (tensor.layout() != at::kStrided) throw Error(Errc::kInvalidArgument, concat("a tensor for all ranks of layout ", tensor.layout(), " cannot be sent; give tensor.to_dense()"));
  if (!tensor.is_contiguous()) {
    throw Error(Errc::kInvalidArgument, concat("a tensor for all ranks of sizes ", tensor.sizes(), " and strides ", tensor.strides(), " is not contiguous; give tensor.contiguous(), and copy the result back"));
  }
}

void check_summable(const at::Tensor& tensor) {
  check_tensor(tensor);
  switch (tensor.scalar_type()) {
    case at::kFloat: case at::kDouble: case at::kHalf: case at::kBFloat16: case at::kLong: case at::kInt: case at::kChar: case at::kByte: return;
    default: throw Error(Errc::kInvalidArgument, concat("a tensor of type ", tensor.scalar_type(), " cannot be summed over ranks; convert it to one of float, double, half, bfloat16, int64, int32, int8, uint8"));
  }
}

void check_root(int root, int size) {
  if (root < 0 || root >= size) throw Error(Errc::kInvalidArgument, concat("a broadcast from rank ", root, " of ", size, ": ranks go from 0 to ", size - 1));
}

}  // namespace marlin::distributed
