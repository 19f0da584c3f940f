// The searches of the trellis code, `_search_chunk` of viterbi.py, and of the integer code, `_best_path` of
// integers.py, for eight rows at a time.
//
// Numbers are added in the order of the plain search, and no product is fused with a sum (-ffp-contract=off): both give
// the same bits.
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

constexpr int LANES = 8;  // rows; a cost of all of them is a vector register of AVX2
typedef float Costs __attribute__((vector_size(4 * LANES)));
typedef int32_t Numbers __attribute__((vector_size(4 * LANES)));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));

static Costs load(const float* source) {
    Costs costs;
    std::memcpy(&costs, source, sizeof costs);  // wherever it lies in memory
    return costs;
}

// One step of v coefficients and k bits: costs of all states before it and after it, and where the best paths came from.
template <int v, int fixed_k>
static void step(const Costs* before, Costs* after, Bytes* origins, const float* factor, const float* norm,
                 const float* target, int states, int any_k) {
    const int k = fixed_k ? fixed_k : any_k, group = states >> k;
    Costs targets[v];
    for (int i = 0; i < v; i++) targets[i] = load(target + i * LANES);
    for (int low = 0; low < group; low++) {
        // 1. The states before this step that lead to the same states differ in their top k bits: keep the best of them.
        Costs best = before[low];
        Numbers origin = {};
        for (int top = 1; top < 1 << k; top++) {
            const Costs cost = before[top * group + low];
            const Numbers less = cost < best;
            best = less ? cost : best;
            origin = less ? Numbers{} + top : origin;
        }
        origins[low] = __builtin_convertvector(origin, Bytes);
        // 2. The squared distance of each new state, without |target|^2, which is the same for all states.
        for (int state = low << k; state < (low + 1) << k; state++) {
            Costs cost = Costs{} + norm[state];
            for (int i = 0; i < v; i++) cost = cost + factor[state * v + i] * targets[i];
            after[state] = cost + best;
        }
    }
}

template <int v, typename... Arguments>
static void step_of(int k, Arguments... arguments) {
    if (k == 1) step<v, 1>(arguments..., k);
    else if (k == 2) step<v, 2>(arguments..., k);
    else if (k == 3) step<v, 3>(arguments..., k);
    else step<v, 0>(arguments..., k);
}

// targets  (groups, m, LANES)   coefficients of the steps, one after another
// vectors, bits  (steps,)       v: 1, 2, 4 or 8; k: 1 to 8
// factors, norms                for each step (states, v): -2 * codebook, and (states,): its squared lengths
// path     (groups, steps, LANES)  written: the states of least squared error
extern "C" void search_trellis(const float* targets, int groups, int m, const int32_t* vectors, const int32_t* bits, int steps,
                               int state_bits, const float* const* factors, const float* const* norms, int32_t* path) {
    const int states = 1 << state_bits;
    int64_t total = 0;
    for (int j = 0; j < steps; j++) total += states >> bits[j];
    std::vector<Costs> first(states), second(states);
    std::vector<Bytes> origins(total);
    for (int g = 0; g < groups; g++) {
        Costs *before = first.data(), *after = second.data();
        for (int s = 0; s < states; s++) before[s] = Costs{} + std::numeric_limits<float>::infinity();
        before[0] = Costs{};  // every path starts in state 0
        const float* target = targets + int64_t(g) * m * LANES;
        int64_t end = 0;
        for (int j = 0; j < steps; j++) {
            const int v = vectors[j], k = bits[j];
            Bytes* origin = &origins[end];
            if (v == 1) step_of<1>(k, before, after, origin, factors[j], norms[j], target, states);
            else if (v == 2) step_of<2>(k, before, after, origin, factors[j], norms[j], target, states);
            else if (v == 4) step_of<4>(k, before, after, origin, factors[j], norms[j], target, states);
            else step_of<8>(k, before, after, origin, factors[j], norms[j], target, states);
            end += states >> k;
            target += v * LANES;
            std::swap(before, after);
        }
        // 3. From the best last state back to the first.
        for (int lane = 0; lane < LANES; lane++) {
            int state = 0;
            for (int s = 1; s < states; s++)
                if (before[s][lane] < before[state][lane]) state = s;
            int64_t start = end;
            for (int j = steps - 1; j >= 0; j--) {
                path[(int64_t(g) * steps + j) * LANES + lane] = state;
                start -= states >> bits[j];
                const int low = state >> bits[j];
                state = low | int(origins[start + low][lane]) << (state_bits - bits[j]);
            }
        }
    }
}

// cost   (steps, 4, rows)        of the best integer on every grid; rows: a multiple of LANES, of which `count` are searched
// grids  (2, states / 2, 2)      the grid of a path's last bits: by origin, the other bits of the state, new bit
// path   (steps, rows)           written: the path bits of least total cost
extern "C" void search_integers(const float* cost, int steps, int64_t rows, int64_t count, const int32_t* grids, int states,
                                uint8_t* path) {
    std::vector<Costs> first(states), second(states);
    std::vector<Bytes> origins(int64_t(steps) * states);
    for (int64_t row = 0; row < count; row += LANES) {
        Costs *before = first.data(), *after = second.data();
        for (int s = 0; s < states; s++) before[s] = Costs{} + std::numeric_limits<float>::infinity();
        before[0] = Costs{};  // every path starts in state 0
        for (int step = 0; step < steps; step++) {
            Costs branch[4];
            for (int grid = 0; grid < 4; grid++) branch[grid] = load(cost + (int64_t(step) * 4 + grid) * rows + row);
            for (int state = 0; state < states; state++) {  // 2 q + bit, after q or q + states / 2
                const Costs low = before[state >> 1] + branch[grids[state]];
                const Costs high = before[(state >> 1) + states / 2] + branch[grids[states + state]];
                const Numbers less = high < low;
                after[state] = less ? high : low;
                origins[int64_t(step) * states + state] = __builtin_convertvector(less & 1, Bytes);
            }
            std::swap(before, after);
        }
        for (int lane = 0; lane < LANES; lane++) {
            int state = 0;
            for (int s = 1; s < states; s++)
                if (before[s][lane] < before[state][lane]) state = s;
            for (int step = steps - 1; step >= 0; step--) {
                path[int64_t(step) * rows + row + lane] = state & 1;
                state = (state >> 1) | (origins[int64_t(step) * states + state][lane] * (states / 2));
            }
        }
    }
}
