// ddp: steps of two ranks over Gloo, one thread each, against Python's DDP, against their parts, and what a single rank costs over `sp`.
//
// 12 layers of 256x256, mean squared error, AdamW, batch 32 a rank. Both ranks are processes of this program, which take turns with the two of Python. Before
// anything is timed all have come to the same parameters.
#include <arpa/inet.h>
#include <marlin/marlin.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <optional>

#include "bench.h"
#include "ddp_parts.h"
#include "python_peer.h"

namespace marlin::bench {
namespace {

constexpr int kBlocks = 31;
constexpr int64_t kSteps = 30, kSamples = kSteps * kDdpBatch * 2;

class Layers : public ModuleInterface {
 public:
  explicit Layers(DdpData data) : data_(std::move(data)) { net = register_module("net", make_ddp_net()); }

  OptimizersSchedulers get_optimizers_schedulers(const TrainingPlan&) override { return {{std::make_shared<optim::AdamW>(parameters(), optim::AdamWOptions(kDdpRate))}}; }
  std::unique_ptr<DataLoader> get_train_dataloader(const LoaderRequest& request) override {
    return std::make_unique<TensorLoader>(std::vector<at::Tensor>{data_.inputs, data_.targets}, request, TensorLoaderOptions{.shuffle = false});
  }
  StepOutput train_step(const StepContext&, Batch& batch) override { return at::mse_loss(net->forward(batch.data()), batch.target()); }
  void on_end_train_step(const StepSummary&) override {
    if (waits_for != nullptr) waits_for->all_reduce(at::zeros({64}, at::kDouble))->wait();
  }
  void on_end_train_epoch(const EpochSummary&) override { trainer->stop(); }  // an epoch is a block

  torch::nn::Sequential net = nullptr;
  Trainer* trainer = nullptr;
  Communicator* waits_for = nullptr;  // after each step

 private:
  DdpData data_;
};

struct Run {
  Run(std::unique_ptr<TrainerBackend> backend, std::shared_ptr<Communicator> ranks, int64_t batch) : module(std::make_shared<Layers>(make_ddp_data(kSamples))) {
    TrainerOptions options;
    options.epochs = 1 << 20;
    options.train_batch_size = batch;
    options.max_train_steps_per_epoch = kSteps;
    options.clip_grads = false;  // the others do not, either
    Checkpointers none;
    none.push_back(std::make_unique<DefaultCheckpointer>(DefaultCheckpointerOptions{.checkpoint = false}));
    TrainerServices services;
    services.ranks = std::move(ranks);
    trainer = std::make_unique<Trainer>(module, std::move(backend), std::move(none), options, std::move(services));
    module->trainer = trainer.get();
  }
  void operator()() const { static_cast<void>(trainer->train()); }

  std::shared_ptr<Layers> module;
  std::unique_ptr<Trainer> trainer;
};

int free_port() {
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = ::htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  require(::bind(listener, reinterpret_cast<sockaddr*>(&address), size) == 0 && ::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) == 0, "there is a free port");
  ::close(listener);
  return ntohs(address.sin_port);
}

void set_variable(const char* name, const std::string& value) { ::setenv(name, value.c_str(), 1); }

// The other rank: this program again, which runs the same blocks and prints nothing.
class OtherRank {
 public:
  OtherRank() {
    for (const char* name : {"WORLD_SIZE", "LOCAL_WORLD_SIZE"}) set_variable(name, "2");
    set_variable("MASTER_ADDR", "127.0.0.1");
    set_variable("MASTER_PORT", std::to_string(free_port()));
    pid_ = ::fork();
    require(pid_ >= 0, "a process can be started");
    for (const char* name : {"RANK", "LOCAL_RANK"}) set_variable(name, pid_ == 0 ? "1" : "0");
    if (pid_ > 0) return;
    static_cast<void>(std::freopen("/dev/null", "w", stdout));
    const std::string few = std::to_string(blocks(kBlocks));
    const char* peers = option("peers", "").empty() ? nullptr : "--peers";
    ::execl("/proc/self/exe", "marlin_bench", "ddp", "--blocks", few.c_str(), peers, nullptr);
    ::_exit(127);
  }
  ~OtherRank() { ::waitpid(pid_, nullptr, 0); }

 private:
  pid_t pid_ = 0;
};

// What both ranks do at the same time, timed from when both are there until both are done.
Contender together(const std::string& name, Communicator& ranks, std::function<void()> work) {
  return {name, [&ranks, work = std::move(work)] {
            ranks.barrier();
            return seconds_of([&] {
                     work();
                     ranks.barrier();
                   }) / kSteps;
          }};
}

// What rank 0 does while the other one waits.
Contender alone(Contender contender, const Communicator& ranks) {
  if (ranks.rank() != 0) contender.block = [] { return 1.0; };
  return contender;
}

void require_same(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b, const std::string& what) {
  for (size_t i = 0; i < a.size(); ++i) require(torch::allclose(a[i], b[i], 1e-3, 1e-5), "parameters are the same: " + what);
}

double checksum(const std::vector<at::Tensor>& parameters) {
  double sum = 0.0;
  for (const at::Tensor& parameter : parameters) sum += parameter.detach().abs().sum(at::kDouble).item<double>();
  return sum;
}

std::vector<double> sums(const Contender& a, const Contender& b) {
  std::vector<double> result;
  for (size_t i = 0; i < a.seconds.size(); ++i) result.push_back(a.seconds[i] + b.seconds[i]);
  return result;
}

}  // namespace

bool ddp() {
  at::set_num_threads(1);
  std::optional<OtherRank> other;
  if (std::getenv("RANK") == nullptr) other.emplace();
  const std::shared_ptr<Communicator> ranks = connect_ranks({.timeout_seconds = 600.0});
  set_variable("MASTER_PORT", ranks->broadcast_bytes(std::to_string(free_port()), 0));
  const std::shared_ptr<Communicator> over_gloo = connect_ranks({.timeout_seconds = 600.0, .shared_memory = false});
  const bool with_peers = !option("peers", "").empty();
  std::optional<Python> python;
  if (with_peers && ranks->rank() == 0) python.emplace("peers_ddp.py", std::vector<std::string>{std::to_string(kSteps), std::to_string(free_port())});

  const Run both(std::make_unique<DistributedBackend>(), ranks, 2 * kDdpBatch), gloo(std::make_unique<DistributedBackend>(), over_gloo, 2 * kDdpBatch);
  const Run compute(std::make_unique<SingleProcessBackend>(), nullptr, kDdpBatch), in_step(std::make_unique<SingleProcessBackend>(), nullptr, kDdpBatch), sp(std::make_unique<SingleProcessBackend>(), nullptr, kDdpBatch);
  const Run one(std::make_unique<DistributedBackend>(), nullptr, kDdpBatch);
  in_step.module->waits_for = ranks.get();
  const std::unique_ptr<ReducerLoop> reducer = make_reducer_loop(*ranks, kSteps);
  // Of gradients that lie where backward makes them: into one buffer, as fast as in any number of them, and summed; with a message.
  const at::Tensor status = at::zeros({64}, at::kDouble), buffer = at::zeros({gradient_bytes() / 4});
  std::vector<at::Tensor> gradients, places;
  int64_t end = 0;
  for (const at::Tensor& parameter : sp.module->net->parameters()) {
    gradients.push_back(at::zeros_like(parameter));
    places.push_back(buffer.narrow(0, end, parameter.numel()).view(parameter.sizes()));
    end += parameter.numel();
  }
  const auto send = [&] {
    for (int64_t step = 0; step < kSteps; ++step) {
      const auto told = ranks->all_reduce(status);
      at::_foreach_copy_(places, gradients);
      ranks->all_reduce(buffer)->wait();
      told->wait();
    }
  };
  enum : size_t { kBoth, kCompute, kSend, kReducer, kInStep, kGloo, kSp, kOne, kPython, kPythonFused };
  std::vector<Contender> contenders = {together("ddp", *ranks, [&] { both(); }),
                                       together("computation", *ranks, [&] { compute(); }),
                                       together("communication", *ranks, send),
                                       together("c10d_reducer", *ranks, [&] { reducer->epoch(); }),
                                       together("computation_in_step", *ranks, [&] { in_step(); }),
                                       together("ddp_over_gloo", *ranks, [&] { gloo(); }),
                                       alone({"sp", [&] { return seconds_of([&] { sp(); }) / kSteps; }}, *ranks),
                                       alone({"ddp_1_rank", [&] { return seconds_of([&] { one(); }) / kSteps; }}, *ranks)};
  if (with_peers) {
    for (const char* block : {"python_ddp", "python_ddp_fused"}) contenders.push_back(python ? python->contender(block) : alone({block, {}}, *ranks));
  }
  for (Contender& contender : contenders) static_cast<void>(contender.block());
  require_same(both.module->net->parameters(), reducer->parameters(), "ddp and c10d::Reducer");
  require_same(sp.module->net->parameters(), one.module->net->parameters(), "sp and ddp with one rank");
  const double ours = checksum(both.module->net->parameters());
  if (python) require(std::abs(python->ask("checksum") / ours - 1.0) < 1e-5, "Python comes to the same parameters");
  run_interleaved(contenders, blocks(kBlocks));
  if (ranks->rank() != 0) return true;

  print_machine("ddp", "ranks=2 layers=12x256x256 batch_a_rank=" + std::to_string(kDdpBatch) + " warmup=2 blocks=" + std::to_string(blocks(kBlocks)) + " steps_per_block=" + std::to_string(kSteps) + (python ? " python: " + python->works_with() : ""));
  print_csv_header("ms_per_step");
  for (const Contender& contender : contenders) print_csv("ddp", contender, 1e3);
  const Contender apart{"", {}, sums(contenders[kCompute], contenders[kSend])};
  print_ratio("ddp", "ddp / c10d_reducer", contenders[kBoth], contenders[kReducer]);
  print_ratio("ddp", "ddp_over_gloo / c10d_reducer", contenders[kGloo], contenders[kReducer]);
  print_ratio("ddp", "c10d_reducer / (computation + communication)", contenders[kReducer], apart);
  print_ratio("ddp", "ddp / (computation + communication)", contenders[kBoth], apart);
  const Contender in_step_apart{"", {}, sums(contenders[kInStep], contenders[kSend])};
  print_ratio("ddp", "ddp / (computation_in_step + communication)", contenders[kBoth], in_step_apart);
  print_ratio("ddp", "ddp_1_rank / sp", contenders[kOne], contenders[kSp]);
  bool ok = print_bound("ddp", "ddp / (computation + communication)", median_ratio(contenders[kBoth], apart), 1.1);
  ok &= print_bound("ddp", "ddp_1_rank / sp", median_ratio(contenders[kOne], contenders[kSp]), 1.03);
  if (python) {
    print_ratio("ddp", "python_ddp_fused / ddp", contenders[kPythonFused], contenders[kBoth]);
    print_ratio("ddp", "python_ddp / ddp", contenders[kPython], contenders[kBoth]);
    ok &= print_at_least("ddp", "python_ddp / ddp", median_ratio(contenders[kPython], contenders[kBoth]), 1.5);
  }
  return ok;
}

}  // namespace marlin::bench
