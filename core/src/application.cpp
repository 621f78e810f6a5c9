#include "marlin/core/application.h"

#include <torch/torch.h>

#include <cmath>
#include <cstdlib>
#include <iostream>
#include <typeinfo>

#include "backends/built_in.h"
#include "cli/command_line.h"
#include "data/seeds.h"
#include "devices/run_device.h"
#include "distributed/process_group.h"
#include "launch/local_launcher.h"
#include "launch/ranks.h"
#include "marlin/checkpointers/default_checkpointer.h"
#include "marlin/core/backends/ddp_backend.h"
#include "marlin/core/communicator.h"
#include "marlin/core/data/batch_reader.h"
#include "marlin/core/logging.h"
#include "marlin/core/plugin_crashes.h"
#include "marlin/core/plugin_host.h"
#include "marlin/core/progress.h"
#include "marlin/core/stop_signals.h"
#include "marlin/core/version.h"
#include "marlin/core/writers.h"

namespace marlin {
namespace {

// The trainer's flags that say of which parts the run is made.
struct LaunchOptions {
  std::vector<std::string> checkpointer = {"default"};
  std::string backend = "sp";
  int64_t nproc = 1;
  std::vector<std::string> writers = {"stdout"};
  std::string plugin_path;
  double plugin_slow_seconds = 5.0;
  std::string progress = "auto";
  std::string log_level = "INFO";
  std::string config;
  bool print_config = false, help = false, version = false;

  static std::vector<OptionField<LaunchOptions>> option_fields() {
    using O = LaunchOptions;
    return {
        option_field("checkpointer", &O::checkpointer, "Checkpointers, separated by commas: default, the name of a plugin, or the path of one (with a '/')."),
        option_field("backend", &O::backend, "How steps run: sp, sp-amp (mixed precision), ddp, ddp-amp (several processes), or a plugin."),
        option_field("nproc", &O::nproc, "Start so many processes on this machine, which train together; with --backend ddp.", {.min = 1, .max = 4096}),
        option_field("writers", &O::writers, "Where metrics go, separated by commas: stdout, jsonl, or plugins."),
        option_field("plugin_path", &O::plugin_path, "Folders to search for plugins first, separated by ':'."),
        option_field("plugin_slow_seconds", &O::plugin_slow_seconds, "Warn while a call of a plugin takes longer.", {.unit = "seconds", .min = 0.001, .max = 1e8}),
        option_field("progress", &O::progress, "What is shown of a running epoch; auto: a bar on a terminal.", {.choices = {"auto", "bar", "plain", "off"}}),
        option_field("log_level", &O::log_level, "The least that is logged.", {.choices = {"DEBUG", "INFO", "WARNING", "ERROR", "OFF"}}),
        option_field("config", &O::config, "File to take flags from; those on the command line win."),
        option_field("print_config", &O::print_config, "Write all flags with their values as such a file, and end."),
        option_field("help", &O::help, "List all flags, those of plugins too, and end."),
        option_field("version", &O::version, "Say the version, and end."),
    };
  }
};

struct WriterOptions {
  std::string dir = "logs";
  static std::vector<OptionField<WriterOptions>> option_fields() {
    return {option_field("dir", &WriterOptions::dir, "Folder for what writers write.")};
  }
};

// One program run: from the command line to the exit code.
class Run {
 public:
  Run(int argc, char** argv, const Application& application) : application_(application), command_line_(argc, argv), words_(argv, argv + argc) {}

  int go() {
    find_parts();
    const std::vector<cli::OptionGroup> groups = option_groups();
    if (launch_.version) {
      std::cout << "libmarlin " << version() << " (LibTorch " << torch_version() << ")" << std::endl;
      return 0;
    }
    if (launch_.help) {
      std::cout << cli::CommandLine::help(command_line_.program() + " [flags]", groups) << std::flush;
      return 0;
    }
    const std::vector<Options> options = command_line_.parse(groups);
    if (launch_.print_config) {
      std::cout << cli::CommandLine::print_config(groups, options) << std::flush;
      return 0;
    }
    if (is_to_start_ranks()) {
      plugins_.reset();  // with its threads: signals are the launcher's
      return launch::launch_local(static_cast<int>(launch_.nproc), words_);
    }
    return train(options);
  }

  [[nodiscard]] int peer_lost_code() const { return ranks_.launcher == launch::Launcher::kLocal ? launch::kPeerLostCode : 1; }

  /// Empty: the launcher says already who says what.
  [[nodiscard]] std::string rank_prefix() const {
    return ranks_.world_size > 1 && ranks_.launcher != launch::Launcher::kLocal ? concat("[rank ", ranks_.rank, "] ") : "";
  }

  [[nodiscard]] bool loading() const { return trainer_ && trainer_->loading(); }
  [[nodiscard]] bool started() const { return trainer_ && trainer_->started(); }
  [[nodiscard]] std::string position() const {
    return started() ? concat(" (in epoch ", trainer_->last_epoch() + 1, ", after ", trainer_->global_step(), " steps)") : "";
  }

 private:
  struct Part {
    std::string name;                         // as in flags: "default", "best_k"
    const LoadedPlugin* plugin = nullptr;     // null: built in
    size_t group = 0;                         // its place among the option groups
  };

  // Which plugins there are decides which flags there are, so they are loaded before the rest is looked at.
  void find_parts() {
    launch_ = marlin::parse<LaunchOptions>(command_line_.preview(option_table<LaunchOptions>()));
    ranks_ = launch::find_ranks();
    const LogLevel level = parse_log_level(launch_.log_level);
    logger_ = make_console_logger(ranks_.rank == 0 ? level : std::max(level, LogLevel::kWarning));  // what all do, one tells
    host_.logger = logger_.get();
    host_.rank = ranks_.rank;
    host_.world_size = ranks_.world_size;
    plugins_.emplace(split(launch_.plugin_path, ':'), host_, launch_.plugin_slow_seconds);
    take_device();
    if (launch_.checkpointer.empty()) throw Error(Errc::kInvalidArgument, "--checkpointer: names none; to write nothing give --checkpointer.checkpoint false");
    for (const std::string& name : launch_.checkpointer) checkpointers_.push_back(find_part(name, PluginKind::kCheckpointer, checkpointers_));
    for (const std::string& name : launch_.writers) writers_.push_back(find_part(name, PluginKind::kWriter, writers_));
    backend_ = find_part(launch_.backend, PluginKind::kBackend, {});
  }

  // First of all parts: LibTorch looks for its library of a device at the first need, and keeps to what it found.
  void take_device() {
    if (launch_.help || launch_.version || launch_.print_config) return;
    OptionTable table = option_table<TrainerOptions>(application_.defaults);
    std::erase_if(table, [](const OptionSpec& spec) { return spec.name != "device"; });
    const auto wanted = command_line_.preview(table).get<std::string>("device");
    if (launch_.nproc > 1 && ranks_.launcher == launch::Launcher::kNone) check_device(wanted, static_cast<int>(launch_.nproc), *plugins_);  // the ranks take it
    else device_ = find_device(wanted, ranks_, *plugins_, *logger_);
  }

  Part find_part(const std::string& name, PluginKind kind, const std::vector<Part>& before) {
    Part part{name};
    const std::vector<std::string>& built_in = built_in_names(kind);
    if (std::find(built_in.begin(), built_in.end(), name) == built_in.end()) {
      try {
        part.plugin = &plugins_->load(name, kind);
      } catch (const Error& error) {
        if (!std::string_view(error.what()).starts_with("no plugin ")) throw;
        const std::string close = nearest(name, built_in);
        throw Error(error.code(), concat(error.what(), "; built in: ", join(built_in), close.empty() ? "" : " (did you mean " + close + "?)"));
      }
      part.name = part.plugin->name;
    }
    for (const Part& other : before) {
      if (other.name == part.name) throw Error(Errc::kInvalidArgument, concat("'", part.name, "' is given twice"));
    }
    return part;
  }

  std::vector<cli::OptionGroup> option_groups() {
    std::vector<cli::OptionGroup> groups;
    OptionTable trainer = option_table<TrainerOptions>(application_.defaults);
    for (OptionSpec& spec : option_table<LaunchOptions>()) trainer.push_back(std::move(spec));
    groups.push_back({"Trainer", {""}, std::move(trainer)});
    groups.push_back({"Module", {"module."}, application_.module_options});
    groups.push_back({"Writers", {"writer."}, option_table<WriterOptions>()});
    for (Part& part : checkpointers_) {
      OptionTable table = option_table<SaveSchedule>();
      for (OptionSpec& spec : part.plugin ? OptionTable(part.plugin->options) : option_table<DefaultCheckpointerOptions>()) table.push_back(std::move(spec));
      const std::string own = "checkpointer." + part.name + ".";
      add_group(groups, part, "Checkpointer " + part.name, checkpointers_.size() == 1 ? std::vector<std::string>{"checkpointer.", own} : std::vector<std::string>{own}, std::move(table));
    }
    for (Part& part : writers_) {
      if (part.plugin) add_group(groups, part, "Writer " + part.name, {"writer." + part.name + "."}, part.plugin->options);
    }
    OptionTable backend = backend_.plugin ? OptionTable(backend_.plugin->options) : built_in_backend_options(backend_.name);
    if (!backend.empty()) add_group(groups, backend_, "Backend " + backend_.name, {"backend."}, std::move(backend));
    return groups;
  }

  static void add_group(std::vector<cli::OptionGroup>& groups, Part& part, std::string heading, std::vector<std::string> prefixes, OptionTable table) {
    part.group = groups.size();
    groups.push_back({std::move(heading), std::move(prefixes), std::move(table)});
  }

  Checkpointers make_checkpointers(const std::vector<Options>& options) {
    Checkpointers result;
    for (const Part& part : checkpointers_) {
      const Options& own = options[part.group];
      if (part.plugin) {
        result.push_back(plugins_->make_checkpointer(*part.plugin, own));
      } else {
        result.push_back(std::make_unique<DefaultCheckpointer>(marlin::parse<DefaultCheckpointerOptions>(own), host_));
      }
      result.back()->set_schedule(marlin::parse<SaveSchedule>(own));
    }
    return result;
  }

  std::vector<std::unique_ptr<Writer>> make_writers(const std::vector<Options>& options) {
    std::vector<std::unique_ptr<Writer>> result;
    for (const Part& part : writers_) {
      if (part.plugin) result.push_back(plugins_->make_writer(*part.plugin, options[part.group]));
      else if (part.name == "stdout") result.push_back(make_stdout_writer());
      else result.push_back(make_jsonl_writer(marlin::parse<WriterOptions>(options[2]).dir));
    }
    return result;
  }

  // Whether this process only starts those that train.
  [[nodiscard]] bool is_to_start_ranks() const {
    const bool several = launch_.nproc > 1 || ranks_.world_size > 1;
    if (several && !backend_.plugin && !is_distributed(backend_.name)) {
      throw Error(Errc::kInvalidArgument, concat("--backend ", backend_.name, " runs one process, but ",
                                                 launch_.nproc > 1 ? concat("--nproc ", launch_.nproc, " starts several") : concat("this is one of ", ranks_.world_size, " that ", launch::to_string(ranks_.launcher), " has started"),
                                                 ": give --backend ", backend_.name == "sp-amp" ? "ddp-amp" : "ddp", launch_.nproc > 1 ? ", or --nproc 1" : ", or start the program alone"));
    }
    if (launch_.nproc == 1 || ranks_.launcher == launch::Launcher::kLocal) return false;
    if (ranks_.launcher == launch::Launcher::kNone) return true;
    throw Error(Errc::kInvalidArgument, concat("--nproc ", launch_.nproc, ": ", launch::to_string(ranks_.launcher), " has started this process as one of ", ranks_.world_size, " already; leave --nproc out"));
  }

  std::shared_ptr<Communicator> connect_ranks(const Options& backend_options) {
    if (ranks_.world_size == 1) return nullptr;
    distributed::ConnectOptions options;
    options.ranks = ranks_;
    options.logger = logger_.get();
    if (device_.support) options.make_device_group = distributed::group_factory(*device_.support);
    if (!backend_.plugin) {
      const auto ddp = marlin::parse<DdpOptions>(backend_options);
      options.timeout = std::chrono::milliseconds(std::llround(ddp.timeout_seconds * 1e3));
      options.shared_memory = ddp.shared_memory;
    }
    options.on_stuck = [prefix = rank_prefix(), code = peer_lost_code()](const std::string& message) {
      std::cerr << prefix + "error: " + message + "\n" << std::flush;
      std::_Exit(code);
    };
    return distributed::connect(options);
  }

  std::unique_ptr<TrainerBackend> make_backend(const Options& options) {
    if (backend_.plugin) return plugins_->make_backend(*backend_.plugin, options);
    return make_built_in_backend(backend_.name, options);
  }

  int train(const std::vector<Options>& options) {
    const Options& backend_options = backend_.group == 0 ? kNone : options[backend_.group];
    auto trainer_options = marlin::parse<TrainerOptions>(options[0]);
    trainer_options.device = device_.name;
    const auto seed = static_cast<uint64_t>(trainer_options.seed);
    torch::manual_seed(ranks_.rank == 0 ? seed : detail::mixed(seed, ranks_.rank));  // each rank drops out other units
    const std::shared_ptr<Communicator> ranks = connect_ranks(backend_options);
    try {
      return train(options, trainer_options, ranks);
    } catch (...) {
      if (ranks) ranks->fail(detail::current_exception_text());  // unless all know that a rank is lost
      throw;
    }
  }

  int train(const std::vector<Options>& options, const TrainerOptions& trainer_options, const std::shared_ptr<Communicator>& ranks) {
    std::unique_ptr<TrainerBackend> backend = make_backend(backend_.group == 0 ? kNone : options[backend_.group]);
    Checkpointers checkpointers = make_checkpointers(options);
    TrainerServices services{logger_.get(), {}, nullptr};
    if (ranks_.rank == 0) {
      services.writers = make_writers(options);
      services.progress = make_progress(launch_.progress, stderr);
    }
    services.began = began_;
    services.ranks = ranks;
    // Before this a signal ends the process, and nothing on disk has been changed.
    services.before_training = [this] { signals_.emplace(*trainer_); };
    trainer_ = std::make_unique<Trainer>(application_.make_module(options[1]), std::move(backend), std::move(checkpointers), trainer_options, std::move(services));

    RunResult result;
    if (trainer_options.validate_only) {
      result.metrics = trainer_->validate();
      result.epochs = trainer_->last_epoch() + 1;
      result.global_step = trainer_->global_step();
      result.checkpoint = trainer_->newest_checkpoint();
    } else {
      result = trainer_->train();
    }
    if (result.last_save_failed) {
      logger_->error("a last save failed, as said above: what was trained last is not on disk, or not all of it; exit code ", result.exit_code());
    }
    if (ranks_.rank == 0) std::cout << result.summary() << std::endl;
    signals_.reset();
    return result.exit_code();
  }

  inline static const Options kNone;

  const std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
  const Application& application_;
  cli::CommandLine command_line_;
  const std::vector<std::string> words_;
  launch::Ranks ranks_;
  LaunchOptions launch_;
  std::unique_ptr<Logger> logger_;
  HostContext host_;
  std::optional<PluginHost> plugins_;
  RunDevice device_;
  std::vector<Part> checkpointers_, writers_;
  Part backend_;
  std::unique_ptr<Trainer> trainer_;
  std::optional<StopSignals> signals_;
};

// What was asked to be loaded has a code of its own; the rest, before the first epoch, is about flags and parts.
int exit_code(const Error& error, bool started, bool loading) {
  if (started) return 1;
  switch (error.code()) {
    case Errc::kInvalidArgument:
    case Errc::kPlugin:
    case Errc::kUnsupported: return 2;
    case Errc::kNotFound:
    case Errc::kCorrupt:
    case Errc::kMismatch:
    case Errc::kIo: return loading ? 3 : 2;
    case Errc::kTraining: return 1;
  }
  return 1;
}

std::string text_of(const std::exception& error) {
  return *error.what() ? error.what() : concat("an exception of type ", demangled(typeid(error)), ", which says nothing");
}

int report(const std::string& prefix, const std::string& message, int code) {
  std::string line = message.substr(0, message.find_last_not_of(" \n") + 1);
  for (char& c : line) {
    if (c == '\n') c = ' ';
  }
  std::cerr << prefix + "error: " + line + "\n" << std::flush;
  return code;
}

}  // namespace

int run_application(int argc, char** argv, const Application& application) {
  report_plugin_crashes();
  remember_save_signal();
  std::optional<Run> run;
  const auto who = [&] { return run ? run->rank_prefix() : std::string(); };
  const auto where = [&] { return run ? run->position() : std::string(); };
  try {
    run.emplace(argc, argv, application);
    return run->go();
  } catch (const PeerLost& error) {
    return report(who(), error.what(), run->peer_lost_code());
  } catch (const Error& error) {
    const bool started = run && run->started();
    return report(who(), text_of(error) + (error.code() == Errc::kTraining ? "" : where()), exit_code(error, started, run && run->loading()));
  } catch (const c10::Error& error) {
    return report(who(), std::string(error.what_without_backtrace()) + where(), 1);
  } catch (const std::exception& error) {
    return report(who(), text_of(error) + where(), 1);
  } catch (...) {
    return report(who(), "an exception of unknown type" + where(), 1);
  }
}

}  // namespace marlin
