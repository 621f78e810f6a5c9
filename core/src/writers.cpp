#include "marlin/core/writers.h"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <system_error>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

class StdoutWriter final : public Writer {
 public:
  explicit StdoutWriter(std::FILE* stream) : stream_(stream) {}

  void write(const MetricsEvent& event) override {
    if (event.kind == MetricsEvent::Kind::kStep) return;
    std::string line = concat("epoch=", event.epoch, " global_step=", event.global_step);
    for (const auto& [name, value] : event.metrics) {
      char number[32];
      std::snprintf(number, sizeof number, "%.6g", value);
      line += concat(" ", name, "=", number);
    }
    line += '\n';
    std::fwrite(line.data(), 1, line.size(), stream_);
  }
  void flush() override { std::fflush(stream_); }

 private:
  std::FILE* stream_;
};

// JSON has no NaN and no infinities.
nlohmann::ordered_json json_number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return value;
}

class JsonlWriter final : public Writer {
 public:
  explicit JsonlWriter(const std::filesystem::path& dir) : path_(dir / "metrics.jsonl") {}

  void open() override {
    if (!file_) open_file();
  }

  void write(const MetricsEvent& event) override {
    nlohmann::ordered_json object = {{"kind", to_string(event.kind)}, {"epoch", event.epoch}, {"global_step", event.global_step}};
    for (const auto& [name, value] : event.metrics) object.emplace(name, json_number(value));
    const std::string line = object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
    open();
    if (std::fwrite(line.data(), 1, line.size(), file_.get()) != line.size()) fail("write to", errno);
  }

  void flush() override {
    if (file_ && std::fflush(file_.get()) != 0) fail("write to", errno);
  }

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  [[noreturn]] void fail(const char* what, int error) const {
    throw Error(Errc::kIo, concat("cannot ", what, " ", path_.string(), ": ", std::strerror(error)));
  }

  void open_file() {
    if (path_.has_parent_path()) {
      std::error_code error;
      std::filesystem::create_directories(path_.parent_path(), error);
      if (error) fail("make the folder of", error.value());
    }
    file_.reset(std::fopen(path_.c_str(), "a+e"));
    if (!file_) fail("open", errno);
    // A run that was killed may have left half a line: it stays, but the next line must not become a part of it.
    if (std::fseek(file_.get(), -1, SEEK_END) == 0 && std::fgetc(file_.get()) != '\n') {
      std::fseek(file_.get(), 0, SEEK_END);
      std::fputc('\n', file_.get());
    } else {
      std::fseek(file_.get(), 0, SEEK_END);
    }
  }

  std::filesystem::path path_;
  std::unique_ptr<std::FILE, Close> file_;
};

}  // namespace

std::unique_ptr<Writer> make_stdout_writer(std::FILE* stream) { return std::make_unique<StdoutWriter>(stream); }
std::unique_ptr<Writer> make_jsonl_writer(const std::filesystem::path& dir) {
  std::error_code error;
  if (std::filesystem::exists(dir, error) && !std::filesystem::is_directory(dir, error)) {
    throw Error(Errc::kInvalidArgument, concat("writer.dir: '", dir.string(), "' is not a folder"));
  }
  return std::make_unique<JsonlWriter>(dir);
}

}  // namespace marlin
