// The level of this processor, and what this library was compiled from and for.
//
// Compiled for the base level in every library, so that a processor of any level can run it.

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

#if defined(__x86_64__)
namespace {

struct Registers {
  unsigned eax, ebx, ecx, edx;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  asm volatile("cpuid"
               : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
               : "a"(leaf), "c"(subleaf));
  return r;
}

// The registers that the operating system saves: XCR0, its lower half.
unsigned xgetbv() {
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

constexpr unsigned bits() { return 0; }
template <class... Rest> constexpr unsigned bits(unsigned first, Rest... rest) {
  return 1u << first | bits(rest...);
}

bool has(unsigned x, unsigned needed) { return (x & needed) == needed; }

// SSE3, SSSE3, FMA, CX16, SSE4.1, SSE4.2, MOVBE, POPCNT, XSAVE, OSXSAVE, AVX, F16C of leaf 1, ecx.
constexpr unsigned V3_LEAF_1 = bits(0, 9, 12, 13, 19, 20, 22, 23, 26, 27, 28, 29);
constexpr unsigned V3_LEAF_7 = bits(3, 5, 8);             // BMI1, AVX2, BMI2 of ebx
constexpr unsigned V3_EXTENDED = bits(0, 5);              // LAHF, LZCNT of leaf 0x80000001, ecx
constexpr unsigned V4_LEAF_7 = bits(16, 17, 28, 30, 31);  // AVX-512 F, DQ, CD, BW, VL of ebx
constexpr unsigned BF16_LEAF_7_1 = bits(5);               // AVX-512 BF16 of subleaf 1, eax
constexpr unsigned YMM = bits(1, 2), ZMM = bits(1, 2, 5, 6, 7);  // of XCR0

}  // namespace

// In the order of LEVELS in build.py: x86-64, x86-64-v3, x86-64-v4, x86-64-v4-bf16.
EXPORT int graphattn_level() {
  if (cpuid(0, 0).eax < 7 || cpuid(0x80000000u, 0).eax < 0x80000001u) return 0;
  const Registers seven = cpuid(7, 0);
  const bool v3 = has(cpuid(1, 0).ecx, V3_LEAF_1) && has(seven.ebx, V3_LEAF_7) &&
                  has(cpuid(0x80000001u, 0).ecx, V3_EXTENDED) && has(xgetbv(), YMM);
  if (!v3) return 0;
  if (!has(seven.ebx, V4_LEAF_7) || !has(xgetbv(), ZMM)) return 1;
  return seven.eax >= 1 && has(cpuid(7, 1).eax, BF16_LEAF_7_1) ? 3 : 2;
}
#else
EXPORT int graphattn_level() { return 0; }  // arm64 has one level
#endif

EXPORT const char* graphattn_level_name() { return GRAPHATTN_LEVEL_NAME; }
EXPORT const char* graphattn_hash() { return GRAPHATTN_HASH; }
