// What LibTorch's ProcessGroupGloo.hpp names of Gloo. LibTorch brings Gloo's objects in libtorch_cpu, but not its headers, and those of a
// system are of another version. So these declare names only, enough to read that header: no class here has the layout of Gloo's, and none
// may be made, called or destroyed but by LibTorch. Only gloo_group.cpp includes them.
#pragma once

#include <chrono>
#include <memory>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

namespace transport {
class Device;
class UnboundBuffer;
}  // namespace transport

}  // namespace gloo
