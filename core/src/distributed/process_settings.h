// What c10d needs of the process.
#pragma once

namespace marlin::distributed {

/// While one lives: SIGPIPE is ignored, if it was at its default (Gloo writes to connections whose other end may be gone), and what c10d
/// logs by itself stays off the standard error, unless TORCH_CPP_LOG_LEVEL asks for it. The last one to go puts both back.
class ProcessSettings {
 public:
  ProcessSettings();
  ProcessSettings(const ProcessSettings&) : ProcessSettings() {}
  ProcessSettings& operator=(const ProcessSettings&) { return *this; }
  ~ProcessSettings();
};

/// Blocks signals in the calling thread, and in those that it starts: a handler runs in a thread of the application. (Not those of errors.)
void block_signals();

}  // namespace marlin::distributed
