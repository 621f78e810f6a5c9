// What a kind of device needs that libmarlin itself does not link.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <chrono>

#include "marlin/sdk/abi.h"

namespace c10d {
class Backend;
class Store;
}  // namespace c10d

namespace marlin {

/// Made by a plugin of kind `device`, such as `cuda`. Loading that plugin brings LibTorch's library for the device into the process. LibTorch looks for it
/// once, at the first need, so programs load it before they touch any tensor. The methods are called in this order, by one thread.
class MARLIN_ABI DeviceSupport {
 public:
  using ProcessGroupPtr = c10::intrusive_ptr<c10d::Backend>;
  using StorePtr = c10::intrusive_ptr<c10d::Store>;

  virtual ~DeviceSupport();
  /// How many devices this process may use, at least 1. @throws Error kUnsupported: none; the text says why.
  [[nodiscard]] virtual int num_devices() = 0;
  /// Makes one of them the one that the calling thread's work goes to. @param index from 0
  virtual void use(int index) = 0;
  /// Connects the ranks of a run for tensors on the device in use. All ranks call it. A call of the group that takes longer than `limit` ends the process.
  [[nodiscard]] virtual ProcessGroupPtr make_process_group(const StorePtr& store, int rank, int size, std::chrono::milliseconds limit) = 0;
};

}  // namespace marlin
