// resume_after_kill: starts itself as a training process, kills it (SIGKILL) in the middle of a step, three times, resumes it each
// time from what is on disk, and compares the result with a run that nobody killed: parameters, bit for bit, and recorded metrics.
// Run:    resume_after_kill        (CPU, < 30 s; writes to a temporary folder)
// Expect: last line "killed 3 times: parameters bit-equal: yes, metrics equal: yes"
#include <marlin/marlin.h>
#include <spawn.h>
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <random>
#include <sstream>

extern char** environ;

namespace {

namespace fs = std::filesystem;

constexpr int64_t kEpochs = 4, kStepsPerEpoch = 32;

// A sample of noisy data: its noise is drawn anew each epoch, from numbers that belong to (seed, epoch, sample), on a worker's thread.
struct NoisySine {
  [[nodiscard]] std::optional<size_t> size() const { return 1000; }
  torch::data::Example<> get(marlin::SampleContext& sample) const {
    const at::Tensor x = torch::full({1}, -3.0 + 0.006 * static_cast<double>(sample.index()));
    return {x, x.sin() + 0.1 * torch::randn({1}, sample.generator())};
  }
};

// What makes a resume hard: dropout, momentum, a schedule, shuffled data read ahead by two threads, a short last batch.
class Model : public marlin::ModuleInterface {
 public:
  // Kills the process in the middle of step `kill_at`; -1: never.
  explicit Model(int64_t kill_at) : kill_at_(kill_at) {
    torch::manual_seed(1);
    net_ = register_module("net", torch::nn::Sequential(torch::nn::Linear(1, 32), torch::nn::Tanh(), torch::nn::Dropout(0.1), torch::nn::Linear(32, 1)));
  }
  marlin::OptimizersSchedulers get_optimizers_schedulers(const marlin::TrainingPlan& plan) override {
    auto optimizer = std::make_shared<marlin::optim::SGD>(parameters(), marlin::optim::SGDOptions(0.05).momentum(0.9));
    return {{optimizer}, {std::make_shared<marlin::optim::CosineAnnealingLR>(*optimizer, plan.total_steps())}};
  }
  std::unique_ptr<marlin::DataLoader> get_train_dataloader(const marlin::LoaderRequest& request) override {
    marlin::DatasetLoaderOptions options;
    options.num_workers = 2;
    return marlin::make_dataset_loader(NoisySine(), request, options);
  }
  marlin::StepOutput train_step(const marlin::StepContext& step, marlin::Batch& batch) override {
    at::Tensor loss = torch::mse_loss(net_->forward(batch.data()), batch.target());
    if (step.global_step == kill_at_) raise(SIGKILL);
    return loss;
  }

 private:
  int64_t kill_at_;
  torch::nn::Sequential net_ = nullptr;
};

// The training process: goes on with whatever is in its folder.
int train(const fs::path& folder, int64_t kill_at) {
  const auto logger = marlin::make_console_logger(marlin::LogLevel::kWarning);
  marlin::DefaultCheckpointerOptions where;
  where.save_dir = (folder / "checkpoints").string();
  marlin::Checkpointers checkpointers;
  checkpointers.push_back(std::make_unique<marlin::DefaultCheckpointer>(where, marlin::HostContext{logger.get()}));
  marlin::SaveSchedule schedule;
  schedule.period_steps = 10;  // in the background
  checkpointers.back()->set_schedule(schedule);
  marlin::TrainerOptions options;
  options.epochs = kEpochs;
  options.train_batch_size = 32;
  options.log_steps = 4;
  options.resume = "auto";
  marlin::TrainerServices services;
  services.logger = logger.get();
  services.writers.push_back(marlin::make_jsonl_writer(folder / "logs"));
  marlin::Trainer(std::make_shared<Model>(kill_at), nullptr, std::move(checkpointers), options, std::move(services)).train();
  return 0;
}

// Starts this program as a training process and waits for it. @return 0 if it ended by itself, else the signal that killed it.
int run_training(const fs::path& folder, int64_t kill_at) {
  std::string program = fs::read_symlink("/proc/self/exe").string(), role = "train", where = folder.string(), when = std::to_string(kill_at);
  char* arguments[] = {program.data(), role.data(), where.data(), when.data(), nullptr};
  pid_t child = 0;
  int status = 0;
  if (posix_spawn(&child, program.c_str(), nullptr, nullptr, arguments, environ) != 0 || waitpid(child, &status, 0) != child) throw std::runtime_error("cannot start " + program);
  if (WIFSIGNALED(status)) return WTERMSIG(status);
  if (WEXITSTATUS(status) != 0) throw std::runtime_error("a training process failed");
  return 0;
}

std::string bytes_of(const fs::path& file) {
  std::ostringstream bytes;
  bytes << std::ifstream(file, std::ios::binary).rdbuf();
  return bytes.str();
}

int compare(const fs::path& folder) {
  run_training(folder / "straight", -1);

  std::mt19937 random(std::random_device{}());
  int kills = 0;
  for (int64_t from = 10; kills < 3; ++kills) {  // from the second save on: then the first is on disk
    from += std::uniform_int_distribution<int64_t>(11, (kEpochs * kStepsPerEpoch - 10) / 3 - 1)(random);
    std::cout << "killed in step " << from << ": " << (run_training(folder / "killed", from) == SIGKILL ? "yes" : "no") << std::endl;
  }
  run_training(folder / "killed", -1);

  const std::string model = "checkpoints/checkpoint_model_" + std::to_string(kEpochs - 1) + ".pt";
  Model straight(-1), killed(-1);
  marlin::load_model_state(straight, folder / "straight" / model);
  marlin::load_model_state(killed, folder / "killed" / model);
  const bool same_bits = equal(straight.get_state(), killed.get_state());
  const bool same_metrics = bytes_of(folder / "straight/logs/metrics.jsonl") == bytes_of(folder / "killed/logs/metrics.jsonl");
  std::cout << "killed " << kills << " times: parameters bit-equal: " << (same_bits ? "yes" : "no") << ", metrics equal: " << (same_metrics ? "yes" : "no") << std::endl;
  return same_bits && same_metrics ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  torch::set_num_threads(1);
  try {
    if (argc == 4 && std::string(argv[1]) == "train") return train(argv[2], std::stoll(argv[3]));
    const fs::path folder = fs::temp_directory_path() / ("resume_after_kill_" + std::to_string(getpid()));
    const int code = compare(folder);
    fs::remove_all(folder);
    return code;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << std::endl;
    return 1;
  }
}
