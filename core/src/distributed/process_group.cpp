#include "distributed/process_group.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <thread>
#include <utility>

#include "distributed/address.h"
#include "distributed/arguments.h"
#include "distributed/device_watch.h"
#include "distributed/gloo_group.h"
#include "distributed/monitor.h"
#include "distributed/process_settings.h"
#include "distributed/rendezvous.h"
#include "distributed/shared_sums.h"
#include "distributed/within.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin::distributed {
namespace {

using namespace std::chrono_literals;
using GroupPtr = c10::intrusive_ptr<c10d::Backend>;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;

constexpr auto kSlice = 50ms;    // of waiting, between two looks at the verdict
constexpr auto kLook = 1ms;      // between two looks at the store
constexpr int64_t kPiece = 64 << 20;  // bytes that are sent in one call, for each call has the time limit
constexpr int64_t kKeptKeys = 100;  // of follow(): nobody is that many calls behind
constexpr auto kProbe = 500ms;   // of waiting, until peers are probed
constexpr auto kAsk = 1000ms;    // for the store to say whether a peer has left
constexpr int kProbeTag = 1;     // of what nobody sends
constexpr auto kSlack = 500ms;   // Gloo ends a call at the time limit, or a little later, or (seldom) never

// Its elements have changed, for autograd and for who copies it in the background. (c10d does not say so.)
void bump_version(const at::Tensor& tensor) {
  if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

// The memory of a tensor on the CPU, which it keeps alive.
at::Tensor bytes_of(const at::Tensor& tensor) {
  return at::from_blob(tensor.data_ptr(), {static_cast<int64_t>(tensor.nbytes())}, [tensor](void*) {}, at::kByte);
}

// The same of a text. Should its call never end, it stays.
at::Tensor bytes_of(const std::shared_ptr<std::string>& text) {
  return at::from_blob(text->data(), {static_cast<int64_t>(text->size())}, [text](void*) {}, at::kByte);
}

std::string words_of(const std::exception& error) {
  const auto* c10_error = dynamic_cast<const c10::Error*>(&error);
  return one_line(c10_error != nullptr ? c10_error->what_without_backtrace() : error.what());  // else with a stack
}

class Done final : public Communicator::Work {
 public:
  void wait() override {}
};

// The communicator of a rank that is alone.
class Alone final : public Communicator {
 public:
  [[nodiscard]] int rank() const noexcept override { return 0; }
  [[nodiscard]] int world_size() const noexcept override { return 1; }
  std::unique_ptr<Work> all_reduce(at::Tensor tensor) override { return check_summable(tensor), std::make_unique<Done>(); }
  void broadcast(at::Tensor tensor, int root) override { check_tensor(tensor), check_root(root, 1); }
  std::string broadcast_bytes(const std::string& bytes, int root) override { return check_root(root, 1), bytes; }
  std::vector<std::string> gather_bytes(const std::string& bytes) override { return {bytes}; }
  void barrier() override {}
  void follow(int root) override { check_root(root, 1); }
  void fail(const std::string&) noexcept override {}
};

class ProcessGroup final : public Communicator {
 public:
  explicit ProcessGroup(const ConnectOptions& options)
      : rank_(options.ranks.rank), size_(options.ranks.world_size), limit_(options.timeout), logger_(options.logger == nullptr ? null_logger() : *options.logger) {
    const Rendezvous rendezvous = meet(options.ranks, limit_);
    store_ = c10::make_intrusive<c10d::PrefixStore>("calls", rendezvous.store);
    watch(rendezvous, options);
    try {
      connect_groups(rendezvous, options);
    } catch (const Error& error) {
      monitor_->fail(error.what());  // unless it is a PeerLost: all know that
      end();
      throw;
    }
  }
  ~ProcessGroup() override { end(); }

  [[nodiscard]] int rank() const noexcept override { return rank_; }
  [[nodiscard]] int world_size() const noexcept override { return size_; }

  std::unique_ptr<Work> all_reduce(at::Tensor tensor) override {
    check_summable(tensor);
    check_device(tensor);
    monitor_->begin_call();
    if (tensor.numel() == 0) return std::make_unique<Done>();
    bump_version(tensor);
    if (sums_ && tensor.is_cpu()) return std::make_unique<Shared>(*this, sums_->begin(tensor));
    return std::make_unique<Pending>(*this, tensor, start(tensor, [&](c10d::Backend& group, std::vector<at::Tensor>& tensors) { return group.allreduce(tensors); }));
  }

  void broadcast(at::Tensor tensor, int root) override {
    check_tensor(tensor);
    check_device(tensor);
    check_root(root, size_);
    begin_call();
    if (tensor.numel() == 0) return;
    if (rank_ != root) bump_version(tensor);
    send(tensor.is_cpu() ? bytes_of(tensor) : tensor, root);
  }

  std::string broadcast_bytes(const std::string& bytes, int root) override {
    check_root(root, size_);
    begin_call();
    const at::Tensor length = at::full({1}, static_cast<int64_t>(bytes.size()), at::kLong);
    send(length, root);
    const auto text = std::make_shared<std::string>(rank_ == root ? bytes : std::string(static_cast<size_t>(length.item<int64_t>()), '\0'));
    const at::Tensor all = bytes_of(text);
    for (int64_t begin = 0; begin < all.numel(); begin += kPiece) send(all.narrow(0, begin, std::min(kPiece, all.numel() - begin)), root);
    return std::move(*text);
  }

  std::vector<std::string> gather_bytes(const std::string& bytes) override {
    begin_call();
    const at::Tensor lengths = at::zeros({size_}, at::kLong);
    const auto* length = lengths.data_ptr<int64_t>();
    lengths.data_ptr<int64_t>()[rank_] = static_cast<int64_t>(bytes.size());
    finish(*start(lengths, [](c10d::Backend& group, std::vector<at::Tensor>& tensors) { return group.allreduce(tensors); }), lengths);
    const int64_t longest = *std::max_element(length, length + size_);
    std::vector<std::string> all(rank_ == 0 ? static_cast<size_t>(size_) : 0);
    if (longest == 0) return all;
    // Gloo gathers pieces of equal length.
    const at::Tensor mine = at::zeros({longest}, at::kByte);
    std::memcpy(mine.data_ptr(), bytes.data(), bytes.size());
    std::vector<std::vector<at::Tensor>> pieces(rank_ == 0 ? 1 : 0);
    for (int rank = 0; rank < size_ && rank_ == 0; ++rank) pieces[0].push_back(at::empty({longest}, at::kByte));
    finish(*start(mine, [&](c10d::Backend& group, std::vector<at::Tensor>& tensors) { return group.gather(pieces, tensors); }), mine);
    for (size_t rank = 0; rank < all.size(); ++rank) {
      all[rank].assign(static_cast<const char*>(pieces[0][rank].data_ptr()), static_cast<size_t>(length[rank]));
    }
    return all;
  }

  void barrier() override {
    begin_call();
    meet_at_barrier();
  }

  void follow(int root) override {
    check_root(root, size_);
    begin_call();
    // Root may take as long as it likes: the store answers meanwhile. Where that is cut off, a question to it hangs, and the thread with it.
    const auto questions = std::make_shared<Questions>();
    try {
      const int64_t call = follows_++;
      int64_t seen = -1;
      Clock::duration silence{};  // counted in looks, so that a time in which this process itself stood still is none
      const auto give_up_waiting = [&] {
        const int64_t answers = questions->answers;
        silence = answers == seen ? silence + kGiveUpLook : Clock::duration::zero();
        seen = answers;
        return monitor_->has_verdict() || silence > limit_;
      };
      const auto followed = within<bool>(Clock::time_point::max(), rank_ == root ? lead(call) : wait_for(root, call, questions), give_up_waiting);
      if (followed == true) return;
      questions->over = true;
      give_up(followed.has_value() ? Saw::kClosed : Saw::kNothing);
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      logger_.debug("c10d: ", words_of(error));
      give_up(Saw::kClosed);
    }
  }

  void fail(const std::string& message) noexcept override { monitor_->fail(message); }

 private:
  class Pending final : public Work {
   public:
    Pending(ProcessGroup& of, at::Tensor tensor, WorkPtr work) : of_(of), tensor_(std::move(tensor)), work_(std::move(work)) {}
    void wait() override {
      if (!work_) return;
      of_.finish(*work_, tensor_, begin_);
      work_.reset();
    }

   private:
    ProcessGroup& of_;
    at::Tensor tensor_;
    WorkPtr work_;
    Clock::time_point begin_ = Clock::now();
  };

  class Shared final : public Work {
   public:
    Shared(ProcessGroup& of, uint64_t sum) : of_(of), sum_(sum) {}
    void wait() override { of_.sums_->finish(sum_, of_.look_); }

   private:
    ProcessGroup& of_;
    const uint64_t sum_;
  };

  struct Questions {
    std::atomic<int64_t> answers = 0;
    std::atomic<bool> over = false;  // nobody waits for more
  };
  static std::string follow_key(int64_t call) { return concat("follow/", call); }

  [[nodiscard]] std::function<bool()> lead(int64_t call) const {
    return [store = store_, call] {
      store->set(follow_key(call), "");
      if (call >= kKeptKeys) static_cast<void>(store->deleteKey(follow_key(call - kKeptKeys)));
      return true;
    };
  }

  // False: root has ended without it.
  [[nodiscard]] std::function<bool()> wait_for(int root, int64_t call, const std::shared_ptr<Questions>& questions) const {
    return [store = store_, call, questions, has_left = monitor_->has_left(root)] {
      const std::vector<std::string> keys = {follow_key(call)};
      while (!store->check(keys)) {
        if (questions->over || (has_left() && !store->check(keys))) return false;
        ++questions->answers;
        std::this_thread::sleep_for(kLook);
      }
      return true;
    };
  }

  void begin_call() {
    monitor_->begin_call();
    if (sums_) sums_->finish_all(look_);  // others may wait for this rank's part in one that it dropped
  }

  // Ranks of one machine sum in memory that they share, if all can have it: it takes a fraction of the time that sockets take.
  void share_memory(bool may_create) {
    const std::string name = broadcast_bytes(rank_ == 0 && may_create ? SharedSums::create(size_) : "", 0);
    std::unique_ptr<SharedSums> sums;
    bool all = false;
    try {
      if (!name.empty()) sums = SharedSums::open(name, rank_, size_);
      const std::vector<std::string> opened = gather_bytes(sums ? "yes" : "");
      all = std::all_of(opened.begin(), opened.end(), [](const std::string& each) { return each == "yes"; });
    } catch (...) {
      if (rank_ == 0) SharedSums::forget(name);
      throw;
    }
    if (rank_ == 0 && !name.empty()) SharedSums::forget(name);
    if (broadcast_bytes(all ? "yes" : "", 0) == "yes") sums_ = std::move(sums);
    else logger_.debug("no memory is shared by the ranks: gradients are summed over Gloo");
  }

  void end() {
    watch_.reset();
    if (std::uncaught_exceptions() > 0) monitor_->fail("an exception has ended it");  // nobody has told the others
    end_device_group();
    const bool busy = std::any_of(begun_.begin(), begun_.end(), [](const WorkPtr& work) { return !work->isCompleted(); });
    if (busy) {
      // A group's destructor waits for its calls, which may not end before the time limit, and nothing can call them off. So the groups stay, and what
      // they use stays as well.
      monitor_->fail("it ended during a call that all ranks must make");
      static_cast<void>(cpu_.release());
      static_cast<void>(new ProcessSettings(settings_));
    } else {
      monitor_->say_goodbye();
      sums_.reset();
      cpu_.reset();
    }
    monitor_.reset();
  }

  // Lets the device finish what was begun. After a failure it never would: then the group stays, as nothing of it can be relied on.
  void end_device_group() {
    if (!device_) return;
    bool ended = false;
    try {
      ended = !monitor_->has_verdict() && within<bool>(Clock::now() + limit_, [group = device_] { return group->shutdown(), true; }, [this] { return monitor_->has_verdict(); }).has_value();
    } catch (const std::exception& error) {
      logger_.debug("c10d: ", words_of(error));
    }
    if (ended) device_.reset();
    else static_cast<void>(device_.release());
  }

  void watch(const Rendezvous& rendezvous, const ConnectOptions& options) {
    const std::string server = options.ranks.agent_store ? concat("torchrun's agent (", options.ranks.master_addr, ":", options.ranks.master_port, ")") : rendezvous.names.front();
    const Monitor::Options given{rank_, server, limit_, options.grace, options.on_stuck};
    auto monitor = std::optional<std::unique_ptr<Monitor>>();
    try {
      monitor = within<std::unique_ptr<Monitor>>(Clock::now() + limit_, [rendezvous, given] {
        ask_no_name_service();
        return std::make_unique<Monitor>(rendezvous, given);
      });
    } catch (const std::exception& error) {
      logger_.debug("c10d: ", words_of(error));
    }
    if (!monitor) throw PeerLost(concat(server, " is gone: it does not take connections; see what it wrote last"));
    monitor_ = std::move(*monitor);
  }

  void connect_groups(const Rendezvous& rendezvous, const ConnectOptions& options) {
    const auto store_of = [&](const char* what) { return c10::make_intrusive<c10d::PrefixStore>(what, rendezvous.store); };
    try {
      const auto made = within<GroupPtr>(Clock::now() + limit_ + kSlack, [store = store_of("cpu"), rank = rank_, size = size_, limit = limit_, address = rendezvous.address]() -> GroupPtr {
        return make_gloo_group(store, rank, size, limit, address);
      }, [this] { return monitor_->has_verdict(); });
      if (!made) give_up(Saw::kNothing);
      cpu_ = *made;
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      logger_.debug("c10d: ", words_of(error));
      give_up(Saw::kNothing);
    }
    try {
      if (options.make_device_group) device_ = options.make_device_group(store_of("device"), rank_, size_, limit_);
      if (device_) watch_ = std::make_unique<DeviceWatch>(limit_, [this] { monitor_->suspect(); });
    } catch (const Error&) {
      monitor_->check();
      throw;
    } catch (const std::exception& error) {
      monitor_->check();
      throw Error(Errc::kUnsupported, concat("the ranks' devices cannot be connected: ", words_of(error)));
    }
    meet_at_barrier();  // else a rank that ends at once would leave others that are still connecting
    if (options.shared_memory) share_memory(/*may_create=*/options.ranks.local_world_size == size_);
  }

  void meet_at_barrier() {
    const at::Tensor none = at::empty({0});
    finish(*start(none, [](c10d::Backend& group, std::vector<at::Tensor>&) { return group.barrier(); }), none);
  }

  [[noreturn]] void give_up(Saw saw) const {
    monitor_->check();
    monitor_->find_out(saw);
  }

  void check_device(const at::Tensor& tensor) const {
    if (tensor.is_cpu() || device_) return;
    throw Error(Errc::kInvalidArgument, concat("a tensor on ", tensor.device(), " cannot be sent to other ranks: this run has a process group for the CPU only; load the plugin of that device"));
  }

  template <class Call>
  [[nodiscard]] WorkPtr start(const at::Tensor& tensor, const Call& call) {
    std::erase_if(begun_, [](const WorkPtr& work) { return work->isCompleted(); });
    std::vector<at::Tensor> tensors = {tensor};
    if (!tensor.is_cpu()) return start_on_device([&] { return call(*device_, tensors); });
    try {
      return begun_.emplace_back(call(*cpu_, tensors));
    } catch (const std::exception& error) {
      logger_.debug("c10d: ", words_of(error));
    }
    give_up(Saw::kClosed);
  }

  template <class Call>
  [[nodiscard]] WorkPtr start_on_device(const Call& call) {
    watch_->enter();
    try {
      WorkPtr work = call();
      watch_->leave(work);
      return work;
    } catch (const std::exception& error) {
      watch_->leave(nullptr);
      fail_on_device(error);
    }
  }

  // Unlike Gloo's, its words say what is wrong.
  [[noreturn]] void fail_on_device(const std::exception& error) {
    monitor_->check();
    const std::string message = concat("tensors on the device cannot be exchanged with the other ranks: ", words_of(error));
    monitor_->fail(message);
    throw Error(Errc::kTraining, message);
  }

  void send(const at::Tensor& tensor, int root) {
    c10d::BroadcastOptions options;
    options.rootRank = root;
    finish(*start(tensor, [&](c10d::Backend& group, std::vector<at::Tensor>& tensors) { return group.broadcast(tensors, options); }), tensor);
  }

  // Gloo does not end a call whose sending waits while a peer closes the connection, though it knows of that: a new call to that peer is refused at once.
  // It forgets no call, so each round costs some 100 bytes a peer, for good: where ranks wait for each other all day, rounds become rare.
  void probe(c10d::Work& work) {
    if (Clock::now() < next_probe_) return;
    next_probe_ = Clock::now() + 1s + probes_++ * 10ms;
    for (int peer = 0; peer < size_; ++peer) {
      if (peer == rank_) continue;
      std::vector<at::Tensor> nothing = {at::empty({1}, at::kByte)};
      try {
        static_cast<void>(cpu_->recv(nothing, peer, kProbeTag));  // forgotten, and nobody waits for it
      } catch (const std::exception& error) {
        if (work.isCompleted() || has_left(peer)) continue;  // in a last call one may be through before the others are
        logger_.debug("c10d: ", words_of(error));
        give_up(Saw::kClosed);
      }
    }
  }

  // Where the store does not tell, the time limit holds.
  [[nodiscard]] bool has_left(int peer) const try {
    return within<bool>(Clock::now() + kAsk, monitor_->has_left(peer)).value_or(true);
  } catch (const std::exception&) {  // the store has gone; the monitor says so
    return true;
  }

  void finish(c10d::Work& work, const at::Tensor& tensor, Clock::time_point begin = Clock::now()) {
    // On a device this only puts what follows after the call; nothing waits here.
    const auto slice = tensor.is_cpu() ? kSlice : std::chrono::milliseconds(kNoTimeout);
    const auto entered = Clock::now();
    while (true) {
      monitor_->check();
      try {
        work.wait(slice);
        return;
      } catch (const std::exception& error) {
        if (!tensor.is_cpu()) fail_on_device(error);
        const auto waited = Clock::now() - begin;
        if (work.isCompleted() && !work.isSuccess()) {
          logger_.debug("c10d: ", words_of(error));
          give_up(waited + kSlice < limit_ ? Saw::kClosed : Saw::kNothing);
        }
        if (waited > limit_ + kSlack) give_up(Saw::kNothing);  // else the slice is over
        if (Clock::now() - entered > kProbe) probe(work);
      }
    }
  }

  const ProcessSettings settings_;
  const int rank_, size_;
  const std::chrono::milliseconds limit_;
  Logger& logger_;
  c10::intrusive_ptr<c10d::Store> store_;
  int64_t follows_ = 0;         // calls of follow()
  std::unique_ptr<Monitor> monitor_;
  GroupPtr cpu_, device_;       // device_: null without a factory
  std::unique_ptr<DeviceWatch> watch_;  // if there is a device
  std::unique_ptr<SharedSums> sums_;    // of tensors on the CPU, if all ranks are on this machine
  const SharedSums::Look look_ = [this](std::chrono::steady_clock::duration waited, bool lost) {
    monitor_->check();
    if (lost) give_up(Saw::kClosed);
    if (waited > limit_) give_up(Saw::kNothing);
  };
  std::vector<WorkPtr> begun_;          // on the CPU, that may not have ended
  Clock::time_point next_probe_;        // at the earliest
  int64_t probes_ = 0;
};

}  // namespace

std::unique_ptr<Communicator> connect(const ConnectOptions& options) {
  if (options.ranks.world_size == 1) return std::make_unique<Alone>();
  return std::make_unique<ProcessGroup>(options);
}

}  // namespace marlin::distributed
