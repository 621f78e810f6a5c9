// Everything a trainer program needs.
#pragma once

#include "marlin/checkpointers/default_checkpointer.h"
#include "marlin/core/application.h"
#include "marlin/core/backends/sp_backend.h"
#include "marlin/core/data/dataset_loader.h"
#include "marlin/core/data/tensor_loader.h"
#include "marlin/core/logging.h"
#include "marlin/core/model_state.h"
#include "marlin/core/module_interface.h"
#include "marlin/core/optim/lr_scheduler.h"
#include "marlin/core/optim/optimizer_state.h"
#include "marlin/core/plugin_host.h"
#include "marlin/core/progress.h"
#include "marlin/core/trainer.h"
#include "marlin/core/writers.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/options.h"
