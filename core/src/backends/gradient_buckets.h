// Gradients summed over ranks, bucket by bucket, while backward still runs.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/node.h>

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "marlin/core/communicator.h"

namespace marlin {

struct GradientBucketsOptions {
  int64_t bucket_bytes = 25 << 20;       ///< A bucket takes parameters until it has that many. Range: >= 1; 1: one parameter a bucket.
  int64_t first_bucket_bytes = 1 << 20;  ///< The same for the first bucket: small, so that sending begins early. Range: >= 1.
  bool overlap = true;                   ///< False: backward sends nothing, finish() all.
};

/// Sums the gradients of parameters over all ranks. A step: local micro-batches, arm(), the backward that closes the step, finish(), the
/// optimizer, zero_grad(). Every rank makes the same calls, on the same parameters in the same order.
///
/// Parameters are put into buckets from the last one to the first, as their gradients arrive, by type and device; each bucket is one buffer. When all
/// gradients of a bucket are there, it is filled and sent, in an order that is the same on all ranks. One that is late for whatever reason, or
/// never comes, keeps the buckets behind it waiting, at most until finish().
///
/// A gradient counts if it is defined when its bucket is sent, as for an optimizer: in manual optimisation, also one that an earlier micro-batch
/// made. Where this rank has none, others may: it adds zeros. No rank has to know beforehand what it will not use.
///
/// Parameters that do not require grad are left out; when that changes (on all ranks) the next arm() makes new buckets. Otherwise parameters keep
/// type, layout and device. A parameter that is given twice counts once. Memory: one more copy of all gradients.
///
/// Several objects may share parameters and Communicator, if only one is between arm() and finish() at a time. One thread at a time; backward
/// itself may run hooks on threads of its own, and they may call the Communicator.
class GradientBuckets {
 public:
  /// Called once a step, right before anything is sent, with the Communicator at its disposal. @return false: the step is abandoned, by all ranks.
  using BeforeFirst = std::function<bool()>;

  /// All ranks together.
  /// @throws Error kInvalidArgument naming the parameter's place: it is undefined or no leaf. kMismatch: ranks disagree on the parameters.
  GradientBuckets(std::vector<at::Tensor> parameters, Communicator& communicator, const GradientBucketsOptions& options = {});
  /// Does not wait for what is under way. No backward may run.
  ~GradientBuckets();
  GradientBuckets(const GradientBuckets&) = delete;
  GradientBuckets& operator=(const GradientBuckets&) = delete;

  /// Before the backward that closes the step; then one backward at most. Gradients are this rank's own by now: sums of a step before are not
  /// among them, or they would be summed again. Should the last step have been left between arm() and finish(), because backward threw: ends
  /// that one first, with zeros for what was not sent yet, so that ranks that all do so, wherever each was, are in step again.
  /// @param contribute false: this rank has no samples. Its gradients are not looked at (0 * NaN is NaN) and zeros are sent, by finish().
  void arm(bool contribute = true, BeforeFirst before_first = {});

  /// After backward: sends what is left, and waits. Gradients of parameters that any rank used are then the sums, the same bits on all
  /// ranks, in buffers that the next step writes to; those of others are undefined. zero_grad() works with set_to_none true (then a step
  /// copies each gradient once) and false (none is copied, but every parameter counts as used from then on).
  /// @return false: before_first abandoned the step. Nothing was sent, and gradients are this rank's own.
  /// @throws Error kUnsupported naming the parameter: its gradient is sparse, or came again after its bucket had been sent. PeerLost. What before_first
  ///   or the Communicator threw, also in backward, which a failure here never ends. Gradients are then of no use, and this rank must
  ///   tell the others (Communicator::fail()) unless they fail alike. arm() may follow.
  /// @note Sums have no graph, even if backward made one (create_graph).
  [[nodiscard]] bool finish();

  /// Whether the next arm() makes no new buckets, and so calls nobody.
  [[nodiscard]] bool is_current() const { return trained() == trained_; }

  /// Bytes of each bucket, in the order in which they are sent.
  [[nodiscard]] std::vector<int64_t> bucket_sizes() const;

 private:
  struct Slot {                          // a parameter in its bucket
    size_t place = 0;                    // in parameters_
    int64_t offset = 0;                  // in the buffer, in elements
    at::Tensor view;                     // of the buffer; no view for autograd, so that zero_grad() may detach it
    c10::intrusive_ptr<torch::autograd::Node> accumulator;  // lives only as long as somebody holds it, and the hook with it
    uintptr_t hook = 0;
    bool arrived = false;                // in this step's closing backward
    bool used = false;                   // by this rank
  };
  struct Bucket {
    std::vector<Slot> slots;
    at::Tensor buffer;                   // gradients, and one element a slot: how many ranks used it
    at::Tensor counts;                   // the latter
    size_t num_missing = 0;
    std::unique_ptr<Communicator::Work> work;
  };

  void build();
  [[nodiscard]] std::vector<Bucket> assign(const std::vector<size_t>& places) const;
  void allocate(Bucket& bucket) const;
  void add_hooks(size_t bucket);
  void remove_hooks() noexcept;
  [[nodiscard]] std::vector<bool> trained() const;
  [[nodiscard]] std::string name(const Slot& slot) const;

  void arrive(size_t bucket, size_t slot) noexcept;
  void send(bool incomplete) noexcept;
  bool may_send();
  void fill(Bucket& bucket);
  std::exception_ptr wait() noexcept;
  void deliver(const Bucket& bucket);

  const std::vector<at::Tensor> parameters_;
  Communicator& communicator_;
  const GradientBucketsOptions options_;
  std::vector<bool> trained_;            // which parameters are in buckets_
  std::vector<Bucket> buckets_;

  std::mutex mutex_;                     // guards all below, and what a step changes in buckets
  bool armed_ = false, contribute_ = true, abandoned_ = false;
  BeforeFirst before_first_;
  size_t num_sent_ = 0;                  // buckets
  std::exception_ptr failure_;           // the first of this step: nothing is sent after it
};

}  // namespace marlin
