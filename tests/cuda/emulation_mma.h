// The tensor cores' instructions and asynchronous copies (attention_mma.cu). Which thread has which number of a block is
// as NVIDIA's "PTX ISA" says; what another thread has comes by shuffles. A copy may happen at any time until its group is
// waited for: here at once (schedule 0), as late as that (schedule 1), or at one of the two by chance.

namespace emulation {

template <typename real>
static inline float half_of(unsigned two, int which) {
    real x;
    x.bits = (unsigned short)(two >> 16 * which);
    return widen(x);
}

template <typename real>
static inline void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, real) {
    const int g = lane() / 4, t = lane() % 4;
    for (int q = 0; q < 4; q++) {
        unsigned from_a[4];
        for (int i = 0; i < 4; i++) from_a[i] = __shfl_sync(0xffffffffu, a[i], 4 * g + q);
        for (int n = 0; n < 2; n++) {
            const int column = 4 * (2 * t + n) + q;
            const unsigned low = __shfl_sync(0xffffffffu, b0, column), high = __shfl_sync(0xffffffffu, b1, column);
            for (int i = 0; i < 2; i++)
                for (int half = 0; half < 2; half++)
                    c[2 * half + n] += half_of<real>(from_a[half], i) * half_of<real>(low, i) +
                                       half_of<real>(from_a[2 + half], i) * half_of<real>(high, i);
        }
    }
}

template <bool transposed, typename real>
static inline void load_blocks(unsigned (&r)[4], const real *row) {
    const int g = lane() / 4, t = lane() % 4;
    for (int m = 0; m < 4; m++) {
        const real *first = __shfl_sync(0xffffffffu, row, 8 * m + (transposed ? 2 * t : g));
        const real *second = __shfl_sync(0xffffffffu, row, 8 * m + (transposed ? 2 * t + 1 : g));
        r[m] = (unsigned)first[transposed ? g : 2 * t].bits | (unsigned)second[transposed ? g : 2 * t + 1].bits << 16;
    }
}

template <int bytes>
static inline void copy_async(void *to, const void *from, bool there) {
    unsigned char *place = (unsigned char *)__builtin_assume_aligned(to, bytes);
    const unsigned char *source = (const unsigned char *)__builtin_assume_aligned(from, bytes);
    const Copy copy = {place, there ? source : nullptr, bytes};
    if (schedule == 0 || (schedule > 1 && random_below(2)))
        copy.finish();
    else
        current->groups.back().push_back(copy);
}

static inline void end_group() { current->groups.emplace_back(); }

template <int pending>
static inline void wait_for_groups() {
    std::vector<std::vector<Copy>> &groups = current->groups;
    while ((int)groups.size() - 1 > pending) {  // the last one is still open
        for (const Copy &copy : groups.front()) copy.finish();
        groups.erase(groups.begin());
    }
}

static inline float power_of_two(float x) { return exp2f(x); }

}  // namespace emulation
