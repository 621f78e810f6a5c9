#include "archive/two_threads.h"

#include <atomic>
#include <exception>
#include <system_error>
#include <thread>
#include <utility>

namespace marlin::archive {
namespace {

struct Failure {
  size_t index = SIZE_MAX;
  std::exception_ptr what;
};

}  // namespace

void for_each_on_two_threads(size_t count, bool two, const std::function<void(size_t)>& work) {
  std::atomic<size_t> next = 0;
  std::atomic<bool> stop = false;
  const auto run = [&](Failure& failure) {
    for (size_t i = 0; !stop && (i = next++) < count;) {
      try {
        work(i);
      } catch (...) {
        failure = {i, std::current_exception()};
        stop = true;
      }
    }
  };

  Failure here, there;
  std::thread second;
  if (two && count > 1) {
    try {
      second = std::thread(run, std::ref(there));
    } catch (const std::system_error&) {  // no more threads to be had: one does it as well
    }
  }
  run(here);
  if (second.joinable()) second.join();
  const Failure& first = there.index < here.index ? there : here;
  if (first.what != nullptr) std::rethrow_exception(first.what);
}

}  // namespace marlin::archive
