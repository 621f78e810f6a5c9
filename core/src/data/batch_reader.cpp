#include "marlin/core/data/batch_reader.h"

#include <ATen/Context.h>
#include <cxxabi.h>
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "data/intra_op.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin::detail {
namespace {

constexpr std::chrono::milliseconds kAskAgain{20};  // whether to stop

// Threads started while it lives take no signals: those are for the thread that can act on them.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

// An exception as text: exception objects are not handed from thread to thread.
struct Failure {
  Errc code = Errc::kTraining;
  std::string text;
};

void pin(Batch& batch) {
  for (at::Tensor& tensor : batch.tensors) {
    if (tensor.defined() && tensor.device().is_cpu() && !tensor.is_pinned()) tensor = tensor.pin_memory();
  }
}

std::string sample_list(const std::vector<size_t>& indices) {
  constexpr size_t kNamed = 8;
  std::vector<std::string> names;
  for (size_t i = 0; i < std::min(indices.size(), kNamed); ++i) names.push_back(std::to_string(indices[i]));
  if (indices.size() > kNamed) names.push_back(concat("... (", indices.size(), ")"));
  return concat(indices.size() == 1 ? "sample " : "samples ", join(names));
}

}  // namespace

class BatchReader::Engine {
 public:
  Engine(Options options, Calls calls) : options_(std::move(options)), calls_(std::move(calls)) {
    if (options_.num_workers < 0) throw Error(Errc::kInvalidArgument, concat("num_workers must be at least 0, got ", options_.num_workers));
    if (options_.prefetch_factor < 1) throw Error(Errc::kInvalidArgument, concat("prefetch_factor must be at least 1, got ", options_.prefetch_factor));
    options_.pin_memory = options_.pin_memory && at::hasCUDA();
    slots_.resize(static_cast<size_t>(options_.num_workers * options_.prefetch_factor));
  }
  ~Engine() { stop(); }

  Outcome next(ReadBatch& into) {
    if (failure_) throw Error(failure_->code, failure_->text);
    return slots_.empty() ? next_here(into) : next_of_workers(into);
  }

  void reset() {
    failure_.reset();
    std::vector<Slot> dropped(slots_.size());  // freed without the lock
    const std::lock_guard lock(mutex_);
    ++generation_;
    dropped.swap(slots_);
    submitted_ = taken_ = delivered_ = 0;
  }

  void wait_idle() {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [&] { return reading_ == 0; });
  }

 private:
  struct Slot {
    BatchJob job;
    ReadBatch result;
    std::optional<Failure> failure;
    bool ready = false;
  };

  Slot& slot(uint64_t number) { return slots_[number % slots_.size()]; }

  // Never throws: what goes wrong is part of the result.
  void read(Slot& into, size_t worker, SampleContext& context) noexcept {
    try {
      into.result = calls_.read(into.job, worker, context);
      if (options_.pin_memory && !into.result.end) pin(into.result.batch);
    } catch (const Error& error) {
      into.failure = Failure{error.code(), error.what()};
    } catch (...) {
      into.failure = Failure{Errc::kTraining, concat("data set: ", current_exception_text())};
    }
  }

  Outcome hand_over(Slot& read, ReadBatch& into) {
    if (read.failure) {
      failure_ = std::move(read.failure);
      throw Error(failure_->code, failure_->text);
    }
    if (read.result.end) return Outcome::kEnd;
    into = std::move(read.result);
    return Outcome::kBatch;
  }

  Outcome next_here(ReadBatch& into) {
    std::optional<BatchJob> job = calls_.next_job();
    if (!job) return Outcome::kEnd;
    Slot here;
    here.job = std::move(*job);
    {
      const SingleThreadedOps guard;
      read(here, 0, context_);
    }
    return hand_over(here, into);
  }

  Outcome next_of_workers(ReadBatch& into) {
    if (threads_.empty()) start();
    submit();
    if (delivered_ == submitted_) return Outcome::kEnd;
    Slot read;
    {
      std::unique_lock lock(mutex_);
      Slot& next = slot(delivered_);
      while (!next.ready) {
        if (ready_.wait_for(lock, kAskAgain, [&] { return next.ready; })) break;
        lock.unlock();
        const bool stop = options_.stop_requested && options_.stop_requested();
        lock.lock();
        if (stop && !next.ready) return Outcome::kInterrupted;
      }
      read = std::exchange(next, Slot());
      ++delivered_;
    }
    if (read.result.end || read.failure) return hand_over(read, into);
    submit();  // the threads work on while the caller uses the batch
    return hand_over(read, into);
  }

  // Fills the free slots. Only the calling thread changes submitted_ and delivered_, so it may look at them without the lock.
  void submit() {
    while (submitted_ - delivered_ < slots_.size()) {
      std::optional<BatchJob> job = calls_.next_job();
      if (!job) return;
      {
        const std::lock_guard lock(mutex_);
        slot(submitted_++).job = std::move(*job);
      }
      work_.notify_one();
    }
  }

  void start() {
    if (calls_.start) calls_.start();
    const SignalsBlocked blocked;
    for (int64_t worker = 0; worker < options_.num_workers; ++worker) {
      threads_.emplace_back([this, worker] { work(static_cast<size_t>(worker)); });
    }
  }

  void work(size_t worker) {
    const SingleThreadedOps guard;
    SampleContext context;
    std::unique_lock lock(mutex_);
    while (true) {
      work_.wait(lock, [&] { return stopping_ || taken_ < submitted_; });
      if (stopping_) return;
      const uint64_t number = taken_++;
      const uint64_t generation = generation_;
      Slot mine;
      mine.job = std::move(slot(number).job);
      ++reading_;
      lock.unlock();
      read(mine, worker, context);
      mine.ready = true;
      lock.lock();
      --reading_;
      if (generation == generation_) {
        std::swap(slot(number), mine);
        if (number == delivered_) ready_.notify_one();
      }
      if (reading_ == 0) ready_.notify_one();
      lock.unlock();
      mine = Slot();  // what was dropped is freed without the lock
      lock.lock();
    }
  }

  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    work_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  Options options_;
  const Calls calls_;
  SampleContext context_;           // of the calling thread
  std::optional<Failure> failure_;  // of the calling thread: what next() has thrown
  std::vector<std::thread> threads_;

  std::mutex mutex_;  // for all below
  std::condition_variable work_, ready_;
  std::vector<Slot> slots_;  // a ring: batches delivered_ <= number < submitted_ of this generation
  uint64_t submitted_ = 0, taken_ = 0, delivered_ = 0;
  uint64_t generation_ = 0;  // what was taken in an older one is dropped
  int64_t reading_ = 0;      // threads that are in a read
  bool stopping_ = false;
};

BatchReader::BatchReader(Options options, Calls calls) : engine_(std::make_unique<Engine>(std::move(options), std::move(calls))) {}
BatchReader::~BatchReader() = default;
BatchReader::Outcome BatchReader::next(ReadBatch& into) { return engine_->next(into); }
void BatchReader::reset() { engine_->reset(); }
void BatchReader::reset_and_wait() {
  engine_->reset();
  engine_->wait_idle();
}

std::string current_exception_text() {
  try {
    throw;
  } catch (const c10::Error& error) {  // its what() is a page of frames
    return one_line(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return *error.what() ? one_line(error.what()) : concat("an exception of type ", demangled(typeid(error)), ", which says nothing");
  } catch (...) {
    return concat("an exception of type ", demangled(*abi::__cxa_current_exception_type()), ", which is no std::exception");
  }
}

void throw_sample_error(int64_t index, int64_t epoch) {
  throw Error(Errc::kTraining, concat("data set: sample ", index, " of epoch ", epoch, ": ", current_exception_text()));
}

void throw_samples_error(const std::vector<size_t>& indices, int64_t epoch, const std::string& doing, const std::string& cause) {
  throw Error(Errc::kTraining, concat("data set: ", sample_list(indices), " of epoch ", epoch, ": ", doing, cause));
}

}  // namespace marlin::detail
