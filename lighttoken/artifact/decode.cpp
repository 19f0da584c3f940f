// The coefficients of rows, as `read_coefficients` of trellis.py and `predict` of relations.py find them: the same bits.
#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

struct Step {
    int first, size, position, owner;  // coefficients that share a window, where it ends, and whose gain they have
};

// tiers (V,), blocks, lengths (T,)  as `make_index` has them: where the bits of a row start
// positions, owners  (T, m)         where the window of a coefficient ends, and its step; `count` for one without bits
// gains (T, count), book (states, vector)
// relations (V,), slope (m,), offsets, slants (kinds, m)   null without a prediction
struct Code {
    const uint8_t *stream, *tiers;
    const int64_t *blocks, *lengths;
    const int32_t *positions, *owners;
    const float *gains, *book;
    const int32_t* relations;
    const float *slope, *offsets, *slants;
    int32_t tier_count, m, count, state_bits, vector, block, lead, parent_bits;
};

static std::vector<Step> steps_of(const Code& code, int tier) {
    const int32_t *position = code.positions + int64_t(tier) * code.m, *owner = code.owners + int64_t(tier) * code.m;
    std::vector<Step> steps;
    for (int j = 0; j < code.m; j++) {
        if (owner[j] == code.count) continue;
        if (!steps.empty() && steps.back().owner == owner[j]) steps.back().size++;
        else steps.push_back({j, 1, position[j], owner[j]});
    }
    return steps;
}

template <int size>
static void write(float* target, const float* entry, float gain) {
    for (int i = 0; i < size; i++) target[i] = entry[i] * gain;
}

static int64_t start_of(const Code& code, int64_t id) {
    int64_t start = code.blocks[id / code.block] + 8 * code.lead;
    for (int64_t before = id / code.block * code.block; before < id; before++) start += code.lengths[code.tiers[before]];
    return start;
}

// row: zeros, written.
static void decode(const Code& code, const std::vector<Step>& steps, int64_t id, float* row) {
    const uint32_t states = 1u << code.state_bits;
    const float* gains = code.gains + int64_t(code.tiers[id]) * code.count;
    const int64_t start = start_of(code, id);
    for (const Step& step : steps) {
        const int64_t last = start + step.position - 1;
        const uint8_t* end = code.stream + (last >> 3);
        // A window lies in three bytes. What is before the row's first bit counts as zeros.
        const uint32_t word = uint32_t(end[-2]) << 16 | uint32_t(end[-1]) << 8 | end[0];
        const uint32_t known = step.position < code.state_bits ? 1u << step.position : states;
        const float* entry = code.book + int64_t((word >> (7 - (last & 7))) & (known - 1)) * code.vector;
        const float gain = gains[step.owner];
        float* target = row + step.first;
        if (step.size == 1) write<1>(target, entry, gain);
        else if (step.size == 2) write<2>(target, entry, gain);
        else if (step.size == 4) write<4>(target, entry, gain);
        else if (step.size == 8) write<8>(target, entry, gain);
        else for (int i = 0; i < step.size; i++) target[i] = entry[i] * gain;  // cut off at the last coefficient
    }
}

// ids, places  (depth, n)  for each row its grandparent, its parent and itself, and their places in the vocabulary
struct Chain {
    const int64_t* ids;
    const float* places;
    int depth;
    int64_t n;
};

struct Reader {
    const Code& code;
    const Chain& chain;
    std::vector<std::vector<Step>> steps;
    std::vector<float> own;

    Reader(const Code& code, const Chain& chain) : code(code), chain(chain), own(code.m) {
        for (int tier = 0; tier < code.tier_count; tier++) steps.push_back(steps_of(code, tier));
    }

    void read(int64_t i, float* row) {
        std::fill_n(row, code.m, 0.0f);
        for (int level = 0; level < chain.depth; level++) {
            const int64_t at = level * chain.n + i, id = chain.ids[at];
            if (!code.relations) {
                decode(code, steps[code.tiers[id]], id, row);
                continue;
            }
            // It has no parent.
            if (level + 1 < chain.depth && code.relations[chain.ids[at + chain.n]] >> code.parent_bits == 0) continue;
            own.assign(code.m, 0.0f);
            decode(code, steps[code.tiers[id]], id, own.data());
            const int64_t kind = code.relations[id] >> code.parent_bits;
            const float *offset = code.offsets + kind * code.m, *slant = code.slants + kind * code.m;
            const float place = chain.places[at];
            for (int j = 0; j < code.m; j++) row[j] = own[j] + (place * code.slope[j] + offset[j] + slant[j] * row[j]);
        }
    }
};

// In 16 sums, which a compiler can keep in wide registers.
static float dot(const float* a, const float* b, int m) {
    float sums[16] = {}, total = 0;
    int j = 0;
    for (; j + 16 <= m; j += 16)
        for (int lane = 0; lane < 16; lane++) sums[lane] += a[j + lane] * b[j + lane];
    for (; j < m; j++) total += a[j] * b[j];
    for (float sum : sums) total += sum;
    return total;
}

// rows  (n, m)  written
extern "C" void read_rows(const Code* code, const Chain* chain, float* rows) {
    Reader reader(*code, *chain);
    for (int64_t i = 0; i < chain->n; i++) reader.read(i, rows + i * code->m);
}

// vectors (count, m), offsets (count,)  what coefficients are multiplied by, and what is added to the products
// products (count, n)                   written, by threads that share the rows
extern "C" void project_rows(const Code* code, const Chain* chain, const float* vectors, const float* offsets,
                             int64_t count, float* products, int threads) {
    auto project = [=](int64_t first, int64_t end) {
        Reader reader(*code, *chain);
        std::vector<float> row(code->m);
        for (int64_t i = first; i < end; i++) {
            reader.read(i, row.data());
            for (int64_t v = 0; v < count; v++)
                products[v * chain->n + i] = offsets[v] + dot(row.data(), vectors + v * code->m, code->m);
        }
    };
    std::vector<std::thread> others;
    for (int t = 1; t < threads; t++) others.emplace_back(project, chain->n * t / threads, chain->n * (t + 1) / threads);
    project(0, chain->n / threads);
    for (std::thread& other : others) other.join();
}
