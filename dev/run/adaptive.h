// A schedule that adapts (ours, and what preset auto is).
//
// Starts and gaps that suit one model do not suit the next, so this has none. A position 0 that stands out is brought
// down first, while LayerNorm still divides its length away. Then, in front of a removal, it asks the model: a forward
// pass over a few held-out sequences says what each remaining site would cost right now. The cheapest go, as many at once
// as cost no more than the allowance together; then the run waits until the held-out loss is back. Where the training loss
// jumps, the state from before the removal comes back, the learning rate is halved, the allowance too, and divisors take
// longer on their way to sigma_bar. Whatever is left late in the run goes then, slowly. All of it follows from losses,
// which are the same bits for any number of threads, so that a run can be repeated and resumed.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/json.h"
#include "data/shards.h"
#include "dev/engine.h"

namespace lnfree {

struct RunState;

// What the decisions rest on, beyond settings and sites.
struct AdaptiveState {
    double before = NAN;       // held-out loss in front of the last removal
    double expected = 0;       // what that removal was to cost
    double mean = NAN;         // running mean of the training loss,
    double trend = NAN;        // the lowest that it has been,
    double variance = 0;       // and the running mean of its squared distance from that mean
    double allowance = 0.25;   // nats that a removal may cost
    int64_t gentle = 0;        // least number of steps that divisors take
    int64_t uneven_from = -1;  // since when removals wait for position 0; -1: they do not
    int64_t chosen_at = -1;    // step of the last removal
    int64_t roll_backs = 0;
    double level = NAN;  // after the last removal: the lowest held-out loss, and when it was there
    int64_t level_at = 0;

    // Calls see(key, field) for each of them: one list for writing and for reading.
    template <class Any, class See>
    static void visit(Any& a, See see) {
        see("before", a.before);
        see("expected", a.expected);
        see("mean", a.mean);
        see("trend", a.trend);
        see("variance", a.variance);
        see("allowance", a.allowance);
        see("gentle", a.gentle);
        see("uneven_from", a.uneven_from);
        see("chosen_at", a.chosen_at);
        see("roll_backs", a.roll_backs);
        see("level", a.level);
        see("level_at", a.level_at);
    }
};

// What the schedule reaches for outside the model and the state.
struct AdaptiveTools {
    const TokenShards& held_out;
    const StepBatches& batches;           // this step's
    std::function<void()> take_snapshot;  // of the state before this step, to go back to
    std::function<void(const std::string& what, const Json& why)> decide;  // says and logs it
};

// Before a step: what stands out at the start, the next removal, or the end (the settings' stop). Returns the sites that
// set out now, indices into Sites::all.
std::vector<size_t> adapt(Engine& model, RunState& state, bool has_snapshot, const AdaptiveTools& tools);

// Takes in the loss of a training step; true if it is a spike, which is not taken in.
bool is_spike(AdaptiveState& a, double loss);

// Once more back than that many times, and the run has failed.
constexpr int64_t kMostRollBacks = 10;

// What a run that goes back is in afterwards: the snapshot's state, but for what this function names. `now` is the state
// that is left, the engine's part included (captured, state.h).
RunState after_going_back(const RunState& snapshot, const RunState& now);

// What had been done about a position 0 that stands out is undone when a run goes back to before its first removal:
// looks again.
void look_again(Engine& model, RunState& state, const AdaptiveTools& tools);

}  // namespace lnfree
