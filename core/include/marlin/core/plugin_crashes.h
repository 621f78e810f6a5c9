// One line that names the plugin when it takes the process down.
#pragma once

#include "marlin/sdk/abi.h"

namespace marlin {

/// From now on, when a plugin ends the process, one line on standard error says which plugin, which file and which call; the exit
/// code is 2 while the plugin is loaded or makes something, and 1 later. That is when a call of a plugin, or code of its file on a
/// thread of its own, meets a fatal signal (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT) or std::terminate; and when a call of a plugin
/// calls exit() or quick_exit(). Of _exit() nothing is heard, nor of a crash in the destructor of a checkpointer outside of the
/// plugin's own code. In the epochs of a backend plugin, which run the module's code, too, a signal is the plugin's if its code is met.
///
/// Fatal signals that have nothing to do with a plugin go on to what handled them before, so that core dumps and other handlers
/// stay. MARLIN_MAIN calls this; a program of its own may. Once is enough, before plugins are loaded. Under AddressSanitizer, which
/// reports signals itself, it minds exit() and std::terminate only.
MARLIN_ABI void report_plugin_crashes();

}  // namespace marlin
