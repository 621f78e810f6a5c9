// The C++ half of optimizer_interop.py and fused_interop.py. A file of the first holds a small model in the middle of its training:
// parameters after three steps, the optimizer's state, the gradients of three more steps, and the parameters after those.
//   optimizer_tool write FOLDER   trains with every optimizer, and writes such a file for each: FOLDER/<case>.pt
//   optimizer_tool check FILE...  takes such files, <case>.<anything>.pt, goes on from them, and prints for each the greatest
//                                 relative difference of a parameter; exits with 1 if one is above 1e-6
// A file of the second holds parameters, the optimizer's state, and the steps to make from there.
//   optimizer_tool train {CASE FILE OUT}...  makes them with marlin::optim's class, and writes the same of after to OUT
#include <torch/torch.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <map>

#include "marlin/checkpointers/archive.h"
#include "marlin/core/optim/fused.h"
#include "marlin/core/optim/optimizer_state.h"

namespace {

using marlin::List;
using marlin::StateDict;
using marlin::Value;
using torch::optim::OptimizerParamGroup;
using Groups = std::vector<OptimizerParamGroup>;
using Make = std::function<std::unique_ptr<torch::optim::Optimizer>(const Groups&)>;

template <class O, class Options>
Make make(const Options& options) {
  return [options](const Groups& groups) { return std::make_unique<O>(groups, options); };
}

// The same names and hyper-parameters as in optimizer_interop.py and fused_interop.py.
std::map<std::string, Make> cases() {
  using namespace torch::optim;
  return {{"sgd", make<SGD>(SGDOptions(0.05).weight_decay(0.01))},
          {"sgd_momentum", make<SGD>(SGDOptions(0.05).momentum(0.9).dampening(0.1))},
          {"sgd_nesterov", make<SGD>(SGDOptions(0.05).momentum(0.9).nesterov(true))},
          {"adam", make<Adam>(AdamOptions(0.01).betas({0.8, 0.95}).weight_decay(0.1))},
          {"adam_amsgrad", make<Adam>(AdamOptions(0.01).amsgrad(true))},
          {"adamw", make<AdamW>(AdamWOptions(0.01).eps(1e-6))},
          {"adamw_amsgrad", make<AdamW>(AdamWOptions(0.01).amsgrad(true).weight_decay(0.05))},
          {"adagrad", make<Adagrad>(AdagradOptions(0.1).lr_decay(0.05).initial_accumulator_value(0.2))},
          {"rmsprop", make<RMSprop>(RMSpropOptions(0.01).alpha(0.9))},
          {"rmsprop_centered", make<RMSprop>(RMSpropOptions(0.01).momentum(0.8).centered(true).weight_decay(0.01))}};
}

// Two groups; the third parameter is in the first group and never has a gradient.
std::vector<at::Tensor> parameters() {
  torch::manual_seed(1);
  std::vector<at::Tensor> result = {torch::randn({4, 3}), torch::randn({4}), torch::randn({5}), torch::randn({2, 4})};
  for (at::Tensor& parameter : result) parameter.requires_grad_();
  return result;
}

Groups groups_of(const std::vector<at::Tensor>& parameters) {
  Groups groups;
  groups.emplace_back(std::vector<at::Tensor>{parameters[0], parameters[1], parameters[2]});
  groups.emplace_back(std::vector<at::Tensor>{parameters[3]});
  return groups;
}

List gradients_for(const std::vector<at::Tensor>& parameters, int steps) {
  List all;
  for (int step = 0; step < steps; ++step) {
    List gradients;
    for (size_t i = 0; i < parameters.size(); ++i) {
      Value& gradient = gradients.items.emplace_back();
      if (i != 2) gradient = Value(torch::randn(parameters[i].sizes()));
    }
    all.items.emplace_back(std::move(gradients));
  }
  return all;
}

void train(torch::optim::Optimizer& optimizer, const std::vector<at::Tensor>& parameters, const List& gradients) {
  for (const Value& step : gradients.items) {
    for (size_t i = 0; i < parameters.size(); ++i) {
      const Value& gradient = step.as_items().at(i);
      parameters[i].mutable_grad() = gradient.is_null() ? at::Tensor() : gradient.as_tensor();
    }
    optimizer.step();
  }
}

List copies(const std::vector<at::Tensor>& tensors) {
  List list;
  for (const at::Tensor& tensor : tensors) list.items.emplace_back(tensor.detach().clone());
  return list;
}

void write(const Make& make, const std::string& file) {
  const std::vector<at::Tensor> model = parameters();
  const auto optimizer = make(groups_of(model));
  optimizer->param_groups()[1].options().set_lr(0.02);  // groups have options of their own
  train(*optimizer, model, gradients_for(model, 3));
  StateDict root;
  root.set("parameters", copies(model));
  root.set("optimizer", marlin::clone(marlin::optim::get_state(*optimizer)));
  const List gradients = gradients_for(model, 3);
  root.set("gradients", gradients);
  train(*optimizer, model, gradients);
  root.set("expected", copies(model));
  marlin::write_archive(file, root, {});
}

double check(const Make& make, const std::string& file) {
  const StateDict root = marlin::read_archive(file).root;
  const std::vector<at::Tensor> model = parameters();
  const auto optimizer = make(groups_of(model));
  for (OptimizerParamGroup& group : optimizer->param_groups()) group.options().set_lr(123.0);  // the file's hold
  {
    const torch::NoGradGuard no_grad;
    for (size_t i = 0; i < model.size(); ++i) model[i].copy_(root.at("parameters").as_items().at(i).as_tensor());
  }
  marlin::optim::update_state(*optimizer, root.at("optimizer").as_dict());
  train(*optimizer, model, *root.at("gradients").get_if<List>());
  double greatest = 0.0;
  for (size_t i = 0; i < model.size(); ++i) {
    const at::Tensor& expected = root.at("expected").as_items().at(i).as_tensor();
    const double difference = ((model[i].detach() - expected).abs().max() / expected.abs().max()).item<double>();
    if (!(difference <= greatest)) greatest = difference;
    if (std::isnan(greatest)) break;
  }
  return greatest;
}

// What marlin::optim has of these.
std::map<std::string, Make> fused_cases() {
  using namespace marlin::optim;
  const Make sgd = make<SGD>(SGDOptions(0.0)), adam = make<Adam>(AdamOptions(0.0)), adamw = make<AdamW>(AdamWOptions(0.0));
  return {{"sgd", sgd},   {"sgd_momentum", sgd}, {"sgd_nesterov", sgd},    {"adam", adam}, {"adam_amsgrad", adam},
          {"adamw", adamw}, {"adamw_amsgrad", adamw}, {"adagrad", make<Adagrad>(AdagradOptions(0.0))}};  // the file's options hold
}

void train_fused(const Make& make, const std::string& file, const std::string& out) {
  StateDict root = marlin::read_archive(file).root;
  std::vector<at::Tensor> model;
  for (const Value& parameter : root.at("parameters").as_items()) model.push_back(parameter.as_tensor().clone().requires_grad_());
  const auto optimizer = make(groups_of(model));
  marlin::optim::update_state(*optimizer, root.at("optimizer").as_dict());
  for (int64_t step = root.at("begin").as_int(); step < root.at("end").as_int(); ++step) {
    for (size_t i = 0; i < model.size(); ++i) {
      if (i != 2) model[i].mutable_grad() = model[i].detach() - (2.0 + static_cast<double>(step % 7) * 0.125);
    }
    optimizer->step();
  }
  root.set("parameters", copies(model));
  root.set("optimizer", marlin::optim::get_state(*optimizer));
  marlin::write_archive(out, root, {});
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string command = argc >= 3 ? argv[1] : "";
  if (command == "write" && argc == 3) {
    for (const auto& [name, make] : cases()) write(make, std::string(argv[2]) + "/" + name + ".pt");
    return 0;
  }
  if (command == "train" && argc % 3 == 2) {
    for (int i = 2; i < argc; i += 3) train_fused(fused_cases().at(argv[i]), argv[i + 1], argv[i + 2]);
    return 0;
  }
  if (command != "check") {
    std::fputs("usage: optimizer_tool write FOLDER | check FILE... | train {CASE FILE OUT}...\n", stderr);
    return 2;
  }
  int result = 0;
  for (int i = 2; i < argc; ++i) {
    const std::string name = std::filesystem::path(argv[i]).filename().string();
    const double difference = check(cases().at(name.substr(0, name.find('.'))), argv[i]);
    std::printf("Python -> C++  %-32s relative difference %.2g\n", name.c_str(), difference);
    if (!(difference <= 1e-6)) result = 1;
  }
  return result;
} catch (const std::exception& error) {
  std::fprintf(stderr, "optimizer_tool: %s\n", error.what());
  return 1;
}
