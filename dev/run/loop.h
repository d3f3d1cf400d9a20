// What surrounds the training loop of the reference (method.h, train): validation, experiments,
// checkpoints, signals, what a step reports.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dev/method.h"
#include "dev/run/data_order.h"
#include "dev/run/session.h"

namespace lnfree {

// Runs the session from its state's step to the end of its settings: every step, the validations between and after them.
// The weights are then those of the result. Throws RunFailure if the run fails, Interrupted after a signal, both with the
// last good state saved.
void carry_out(Session& session);

// The seams of one run. Everything that a step changes before its update is undone by saving `before_`, the state that it
// began with: a checkpoint of step s is the whole state before step s, and a resumed run does all of step s again.
class Loop final : public Seams {
  public:
    explicit Loop(Session& session);

    void read_batches(int64_t step, StepBatches& batches) override;
    void before_step(int64_t step, const StepBatches& batches) override;
    void after_micro_batch(int64_t step, const BatchLoss& loss) override;
    void after_loss(const StepReport& report) override;
    void after_step(const StepReport& report) override;

    // After the last step.
    void finish();

    // The removals that train() carries out.
    const std::vector<Removal>& schedule() const { return schedule_; }

  private:
    void begin_at(int64_t step);
    void remove_sites(int64_t step, const StepBatches& batches);
    void happened(const std::vector<Event>& events);

    void validate();
    void measure_validation();
    bool checkpoint_is_due(int64_t step) const;

    [[noreturn]] void stop_for_signal(int signal);
    [[noreturn]] void stop_for_divergence(const std::string& what) const;

    Session& session_;
    Engine& model_;
    RunState& state_;
    SequenceOrder order_;
    bool loop_removes_;              // train() takes the sites out, not experiments.cpp
    std::vector<Removal> schedule_;  // for train(); empty where it does not
    RunState before_;                // the state at the beginning of the step in progress
    std::vector<Event> events_;      // of this step
    bool finite_ = true;             // the losses of its micro-batches so far
    double step_began_ = 0;          // clock
    double communication_began_ = 0;
};

}  // namespace lnfree
