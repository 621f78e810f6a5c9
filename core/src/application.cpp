#include "marlin/core/application.h"

#include <torch/torch.h>

#include <cstdlib>
#include <iostream>
#include <typeinfo>

#include "cli/command_line.h"
#include "marlin/checkpointers/default_checkpointer.h"
#include "marlin/core/backends/sp_backend.h"
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
        option_field("backend", &O::backend, "How steps run: sp, or a plugin."),
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
  Run(int argc, char** argv, const Application& application) : application_(application), command_line_(argc, argv) {}

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
    return train(options);
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
    logger_ = make_console_logger(parse_log_level(launch_.log_level));
    host_.logger = logger_.get();
    plugins_.emplace(split(launch_.plugin_path, ':'), host_, launch_.plugin_slow_seconds);
    if (launch_.checkpointer.empty()) throw Error(Errc::kInvalidArgument, "--checkpointer: names none; to write nothing give --checkpointer.checkpoint false");
    for (const std::string& name : launch_.checkpointer) checkpointers_.push_back(find_part(name, PluginKind::kCheckpointer, checkpointers_));
    for (const std::string& name : launch_.writers) writers_.push_back(find_part(name, PluginKind::kWriter, writers_));
    backend_ = find_part(launch_.backend, PluginKind::kBackend, {});
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
    if (backend_.plugin) add_group(groups, backend_, "Backend " + backend_.name, {"backend."}, backend_.plugin->options);
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

  // A launcher that started several of us means them to work together; apart, they would write over each other's files.
  void refuse_several_processes() const {
    if (backend_.plugin) return;
    for (const char* variable : {"WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"}) {
      const char* size = std::getenv(variable);
      if (size == nullptr || std::atoi(size) <= 1) continue;
      throw Error(Errc::kUnsupported, concat("--backend ", backend_.name, " runs one process, but ", variable, " says that this is one of ", size, "; start the program alone"));
    }
  }

  int train(const std::vector<Options>& options) {
    refuse_several_processes();
    const auto trainer_options = marlin::parse<TrainerOptions>(options[0]);
    torch::manual_seed(static_cast<uint64_t>(trainer_options.seed));
    std::unique_ptr<TrainerBackend> backend;
    if (backend_.plugin) backend = plugins_->make_backend(*backend_.plugin, options[backend_.group]);
    Checkpointers checkpointers = make_checkpointers(options);
    TrainerServices services{logger_.get(), make_writers(options), make_progress(launch_.progress, stderr)};
    services.began = began_;
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
    std::cout << result.summary() << std::endl;
    signals_.reset();
    return result.exit_code();
  }

  const std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
  const Application& application_;
  cli::CommandLine command_line_;
  LaunchOptions launch_;
  std::unique_ptr<Logger> logger_;
  HostContext host_;
  std::optional<PluginHost> plugins_;
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

int report(const std::string& message, int code) {
  std::string line = message.substr(0, message.find_last_not_of(" \n") + 1);
  for (char& c : line) {
    if (c == '\n') c = ' ';
  }
  std::cerr << "error: " << line << std::endl;
  return code;
}

}  // namespace

int run_application(int argc, char** argv, const Application& application) {
  report_plugin_crashes();
  remember_save_signal();
  std::optional<Run> run;
  const auto where = [&] { return run ? run->position() : std::string(); };
  try {
    run.emplace(argc, argv, application);
    return run->go();
  } catch (const Error& error) {
    const bool started = run && run->started();
    return report(text_of(error) + (error.code() == Errc::kTraining ? "" : where()), exit_code(error, started, run && run->loading()));
  } catch (const c10::Error& error) {
    return report(std::string(error.what_without_backtrace()) + where(), 1);
  } catch (const std::exception& error) {
    return report(text_of(error) + where(), 1);
  } catch (...) {
    return report("an exception of unknown type" + where(), 1);
  }
}

}  // namespace marlin
