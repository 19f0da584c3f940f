// The coefficients of rows, as `read_coefficients` of trellis.py and `predict` of relations.py find them: the same bits.
#include <algorithm>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

// A window of the bits of a row: it ends in byte `end`, and `shift` bits of that byte lie behind it.
struct Step {
    int first, size;  // coefficients that have this window
    int end, shift;
    uint32_t mask;  // what is before the row's first bit counts as zeros
    float gain;
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
    for (int j = 0, last = code.count; j < code.m; last = owner[j++]) {
        if (owner[j] == code.count) continue;
        if (owner[j] == last) {
            steps.back().size++;
            continue;
        }
        const uint32_t bits = std::min(position[j], code.state_bits), end = position[j] - 1;
        const float gain = code.gains[int64_t(tier) * code.count + owner[j]];
        steps.push_back({j, 1, int(end / 8), int(7 - end % 8), (1u << bits) - 1, gain});
    }
    return steps;
}

template <int size>
static void write(float* target, const float* entry, float gain) {
    for (int i = 0; i < size; i++) target[i] = entry[i] * gain;
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
    const std::vector<std::vector<Step>>& steps;  // of each tier
    std::vector<float> own;
    std::vector<uint8_t> stored, bits;  // of a row, as in the stream and from the highest bit of byte 2 on

    Reader(const Code& code, const Chain& chain, const std::vector<std::vector<Step>>& steps)
        : code(code), chain(chain), steps(steps), own(code.m) {
        const int64_t longest = *std::max_element(code.lengths, code.lengths + code.tier_count);
        stored.resize(longest / 8 + 2);
        bits.resize(longest / 8 + 4);
    }

    void load(int64_t id) {
        int64_t start = code.blocks[id / code.block] + 8 * code.lead;
        for (int64_t before = id / code.block * code.block; before < id; before++)
            start += code.lengths[code.tiers[before]];
        const int64_t length = code.lengths[code.tiers[id]], count = (length + 7) / 8;
        const int ahead = start & 7;
        std::copy_n(code.stream + (start >> 3), (ahead + length + 7) / 8, stored.begin());
        for (int64_t j = 0; j < count; j++) bits[j + 2] = (stored[j] << 8 | stored[j + 1]) >> (8 - ahead);
    }

    // row: zeros, written.
    void decode(int64_t id, float* row) {
        load(id);
        for (const Step& step : steps[code.tiers[id]]) {
            const uint8_t* end = bits.data() + 2 + step.end;  // a window lies in three bytes
            const uint32_t word = uint32_t(end[-2]) << 16 | uint32_t(end[-1]) << 8 | end[0];
            const float* entry = code.book + int64_t(word >> step.shift & step.mask) * code.vector;
            float* target = row + step.first;
            if (step.size == 1) write<1>(target, entry, step.gain);
            else if (step.size == 2) write<2>(target, entry, step.gain);
            else if (step.size == 4) write<4>(target, entry, step.gain);
            else if (step.size == 8) write<8>(target, entry, step.gain);
            else for (int i = 0; i < step.size; i++) target[i] = entry[i] * step.gain;  // cut off at the end
        }
    }

    void read(int64_t i, float* row) {
        std::fill_n(row, code.m, 0.0f);
        for (int level = 0; level < chain.depth; level++) {
            const int64_t at = level * chain.n + i, id = chain.ids[at];
            if (!code.relations) {
                decode(id, row);
                continue;
            }
            // It has no parent.
            if (level + 1 < chain.depth && code.relations[chain.ids[at + chain.n]] >> code.parent_bits == 0) continue;
            own.assign(code.m, 0.0f);
            decode(id, own.data());
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

// `work` on all rows, by threads that share them.
template <typename Work>
static void share(const Code& code, const Chain& chain, int threads, Work work) {
    std::vector<std::vector<Step>> steps;
    for (int tier = 0; tier < code.tier_count; tier++) steps.push_back(steps_of(code, tier));
    auto part = [&](int t) {
        Reader reader(code, chain, steps);
        work(reader, chain.n * t / threads, chain.n * (t + 1) / threads);
    };
    std::vector<std::thread> others;
    for (int t = 1; t < threads; t++) {
        try {
            others.emplace_back(part, t);
        } catch (const std::system_error&) {  // the system has no more
            part(t);
        }
    }
    part(0);
    for (std::thread& other : others) other.join();
}

// rows  (n, m)  written
extern "C" void read_rows(const Code* code, const Chain* chain, float* rows, int threads) {
    share(*code, *chain, threads, [=](Reader& reader, int64_t first, int64_t end) {
        for (int64_t i = first; i < end; i++) reader.read(i, rows + i * code->m);
    });
}

// vectors (count, m), offsets (count,)  what coefficients are multiplied by, and what is added to the products
// products (count, n)                   written
extern "C" void project_rows(const Code* code, const Chain* chain, const float* vectors, const float* offsets,
                             int64_t count, float* products, int threads) {
    share(*code, *chain, threads, [=](Reader& reader, int64_t first, int64_t end) {
        std::vector<float> row(code->m);
        for (int64_t i = first; i < end; i++) {
            reader.read(i, row.data());
            for (int64_t v = 0; v < count; v++)
                products[v * chain->n + i] = offsets[v] + dot(row.data(), vectors + v * code->m, code->m);
        }
    });
}
