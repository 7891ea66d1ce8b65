//! SHA-256 of many messages at once: one message in each lane of a vector register.
//!
//! Without SHA instructions, one message takes a processor ten times as long as with them, for each
//! round waits for the one before. Sixteen unrelated messages side by side fill those waits. A long
//! message that is alone has its message schedule, which waits for nothing, computed for many blocks
//! at once. Only the compression function lives here, as a package of its own, for it is built for speed where all
//! else is built for size; `store::lanes` feeds it.

use sha2::block_api::compress256;

pub const BLOCK: usize = 64;
pub const MAX_LANES: usize = 16;
// A vector costs the same with one lane in use as with all; up to so many, one by one is quicker.
const FEW: usize = 2;

const INITIAL: [u32; 8] =
    [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];

/// How this processor hashes best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// One message at a time, by the sha2 package and its hardware back ends.
    Single,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Kernel {
    /// Returns the fastest kernel the processor can run.
    pub fn best() -> Kernel {
        Self::available().into_iter().next_back().expect("Single runs everywhere")
    }

    /// Returns every kernel the processor can run, the best one last.
    pub fn available() -> Vec<Kernel> {
        #[allow(unused_mut)]
        let mut kernels = vec![Kernel::Single];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("bmi2") {
                kernels.push(Kernel::Avx2);
            }
            if has!("avx512f") && has!("avx2") && has!("bmi2") {
                kernels.push(Kernel::Avx512);
            }
            if has!("sha") {
                kernels.rotate_left(1);
            }
        }
        kernels
    }

    /// Returns how many messages are worth keeping at hand.
    pub fn lanes(self) -> usize {
        match self {
            Kernel::Single => 1,
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => 8,
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 => 16,
        }
    }
}

/// The states of all lanes, word by word: `words[i][lane]`.
#[repr(C, align(64))]
pub struct States {
    words: [[u32; MAX_LANES]; 8],
}

impl Default for States {
    fn default() -> Self {
        States { words: [[0; MAX_LANES]; 8] }
    }
}

impl States {
    /// Starts a new message in `lane`.
    pub fn start(&mut self, lane: usize) {
        self.set(lane, INITIAL);
    }

    /// Returns the digest of `lane`, whose last block, with the padding, has been compressed.
    pub fn digest(&self, lane: usize) -> [u8; 32] {
        let mut digest = [0; 32];
        for (bytes, word) in digest.chunks_exact_mut(4).zip(self.get(lane)) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        digest
    }

    /// Compresses all of `inputs`: a lane's number and its blocks, as many for each lane.
    pub fn compress(&mut self, kernel: Kernel, inputs: &[(usize, &[u8])]) {
        let length = inputs.first().map_or(0, |(_, blocks)| blocks.len());
        assert!(length.is_multiple_of(BLOCK) && inputs.iter().all(|(_, blocks)| blocks.len() == length));
        assert!(inputs.iter().all(|&(lane, _)| lane < kernel.lanes()));
        if inputs.len() <= FEW {
            return inputs.iter().for_each(|(lane, blocks)| self.compress_one(kernel, *lane, blocks));
        }
        // A lane without a message hashes another's blocks, and nobody asks for the result.
        let mut blocks = [inputs[0].1; MAX_LANES];
        inputs.iter().for_each(|&(lane, own)| blocks[lane] = own);
        match kernel {
            Kernel::Single => {
                inputs.iter().for_each(|(lane, blocks)| self.compress_one(kernel, *lane, blocks))
            }
            // SAFETY: best() and available() name a kernel only if the processor has its features,
            // and every slice is as long as the first.
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => unsafe { x86::compress_avx2(&mut self.words, &blocks, length / BLOCK) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 => unsafe { x86::compress_avx512(&mut self.words, &blocks, length / BLOCK) },
        }
    }

    fn compress_one(&mut self, kernel: Kernel, lane: usize, blocks: &[u8]) {
        let mut state = self.get(lane);
        let done = match kernel {
            Kernel::Single => 0,
            // SAFETY: a kernel is named only if the processor has its features, and AVX2 is among those of both.
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 | Kernel::Avx512 => unsafe { x86::compress_one_avx2(&mut state, blocks) },
        };
        compress256(&mut state, blocks[done..].as_chunks().0);
        self.set(lane, state);
    }

    fn get(&self, lane: usize) -> [u32; 8] {
        self.words.map(|word| word[lane])
    }

    fn set(&mut self, lane: usize, state: [u32; 8]) {
        for (word, value) in self.words.iter_mut().zip(state) {
            word[lane] = value;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! One compression function over any vector of 32-bit words, and its two vectors.

    use std::arch::x86_64::*;
    use std::array;

    use super::{BLOCK, MAX_LANES};

    #[rustfmt::skip]
    const K: [u32; 64] = [
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
    ];

    /// A vector of 32-bit words.
    ///
    /// The methods are unsafe because each needs the processor feature of its type; they are always
    /// inlined into a function that has it switched on.
    trait Words: Copy {
        unsafe fn splat(word: u32) -> Self;
        unsafe fn add(self, other: Self) -> Self;
        unsafe fn xor3(self, b: Self, c: Self) -> Self;
        unsafe fn choose(self, yes: Self, no: Self) -> Self;
        unsafe fn majority(self, b: Self, c: Self) -> Self;
        /// Rotates right by `R`; `L` is 32 - `R`.
        unsafe fn rotate<const R: i32, const L: i32>(self) -> Self;
        /// Shifts right by `R`, which is `S` (the two vectors' instructions take it in different types).
        unsafe fn shift<const R: u32, const S: i32>(self) -> Self;
    }

    impl Words for __m512i {
        #[inline(always)]
        unsafe fn splat(word: u32) -> Self {
            unsafe { _mm512_set1_epi32(word.cast_signed()) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { _mm512_add_epi32(self, other) }
        }
        #[inline(always)]
        unsafe fn xor3(self, b: Self, c: Self) -> Self {
            unsafe { _mm512_ternarylogic_epi32::<0x96>(self, b, c) }
        }
        #[inline(always)]
        unsafe fn choose(self, yes: Self, no: Self) -> Self {
            unsafe { _mm512_ternarylogic_epi32::<0xca>(self, yes, no) }
        }
        #[inline(always)]
        unsafe fn majority(self, b: Self, c: Self) -> Self {
            unsafe { _mm512_ternarylogic_epi32::<0xe8>(self, b, c) }
        }
        #[inline(always)]
        unsafe fn rotate<const R: i32, const L: i32>(self) -> Self {
            unsafe { _mm512_ror_epi32::<R>(self) }
        }
        #[inline(always)]
        unsafe fn shift<const R: u32, const S: i32>(self) -> Self {
            unsafe { _mm512_srli_epi32::<R>(self) }
        }
    }

    impl Words for __m256i {
        #[inline(always)]
        unsafe fn splat(word: u32) -> Self {
            unsafe { _mm256_set1_epi32(word.cast_signed()) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { _mm256_add_epi32(self, other) }
        }
        #[inline(always)]
        unsafe fn xor3(self, b: Self, c: Self) -> Self {
            unsafe { _mm256_xor_si256(_mm256_xor_si256(self, b), c) }
        }
        #[inline(always)]
        unsafe fn choose(self, yes: Self, no: Self) -> Self {
            unsafe { _mm256_xor_si256(no, _mm256_and_si256(self, _mm256_xor_si256(yes, no))) }
        }
        #[inline(always)]
        unsafe fn majority(self, b: Self, c: Self) -> Self {
            unsafe {
                _mm256_or_si256(_mm256_and_si256(self, b), _mm256_and_si256(c, _mm256_or_si256(self, b)))
            }
        }
        #[inline(always)]
        unsafe fn rotate<const R: i32, const L: i32>(self) -> Self {
            unsafe { _mm256_or_si256(_mm256_srli_epi32::<R>(self), _mm256_slli_epi32::<L>(self)) }
        }
        #[inline(always)]
        unsafe fn shift<const R: u32, const S: i32>(self) -> Self {
            unsafe { _mm256_srli_epi32::<S>(self) }
        }
    }

    macro_rules! round {
        ($a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident, $k:expr, $w:expr) => {
            let s1 = $e.rotate::<6, 26>().xor3($e.rotate::<11, 21>(), $e.rotate::<25, 7>());
            let t1 = $h.add(W::splat($k)).add($w).add(s1).add($e.choose($f, $g));
            let s0 = $a.rotate::<2, 30>().xor3($a.rotate::<13, 19>(), $a.rotate::<22, 10>());
            $d = $d.add(t1);
            $h = t1.add(s0).add($a.majority($b, $c));
        };
    }

    // The next sixteen words of the message schedule, in place of the sixteen before.
    #[inline(always)]
    unsafe fn extend<W: Words>(w: &mut [W; 16]) {
        // SAFETY: the caller has the feature of W.
        unsafe {
            for n in 0..16 {
                let (x, y) = (w[(n + 1) % 16], w[(n + 14) % 16]);
                let s0 = x.rotate::<7, 25>().xor3(x.rotate::<18, 14>(), x.shift::<3, 3>());
                let s1 = y.rotate::<17, 15>().xor3(y.rotate::<19, 13>(), y.shift::<10, 10>());
                w[n] = w[n].add(s0).add(w[(n + 9) % 16]).add(s1);
            }
        }
    }

    // Sixty-four rounds on one message, whose schedule with the constants added is column `lane`.
    #[inline(always)]
    fn rounds(state: &mut [u32; 8], schedule: &[[u32; 8]; 64], lane: usize) {
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
        // The majority of a, b and c is b where a and b agree, else c; the next round's b and c are these.
        let mut bc = b ^ c;
        macro_rules! round {
            ($a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident, $n:expr) => {
                let t1 = $h
                    .wrapping_add(schedule[$n][lane])
                    .wrapping_add(($e & $f) + (!$e & $g))
                    .wrapping_add($e.rotate_right(6) ^ $e.rotate_right(11) ^ $e.rotate_right(25));
                $d = $d.wrapping_add(t1);
                let ab = $a ^ $b;
                $h = t1
                    .wrapping_add($b ^ (ab & bc))
                    .wrapping_add($a.rotate_right(2) ^ $a.rotate_right(13) ^ $a.rotate_right(22));
                bc = ab;
            };
        }
        for n in (0..64).step_by(8) {
            round!(a b c d e f g h, n);
            round!(h a b c d e f g, n + 1);
            round!(g h a b c d e f, n + 2);
            round!(f g h a b c d e, n + 3);
            round!(e f g h a b c d, n + 4);
            round!(d e f g h a b c, n + 5);
            round!(c d e f g h a b, n + 6);
            round!(b c d e f g h a, n + 7);
        }
        for (word, value) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
            *word = word.wrapping_add(value);
        }
    }

    /// Compresses the blocks of one message, 8 at a time, and returns how many bytes those were.
    ///
    /// # Safety
    /// The processor has AVX2 and BMI2.
    #[target_feature(enable = "avx2,bmi1,bmi2")]
    pub unsafe fn compress_one_avx2(state: &mut [u32; 8], blocks: &[u8]) -> usize {
        const LANES: usize = 8;
        let (groups, _) = blocks.as_chunks::<{ LANES * BLOCK }>();
        let mut schedule = [[0; LANES]; 64];
        for group in groups {
            // SAFETY: the caller's promises; loads and stores are the unaligned ones, within group and schedule.
            unsafe {
                let half = |at: usize| {
                    transpose_avx2(array::from_fn(|block| {
                        _mm256_loadu_si256(group.as_ptr().add(block * BLOCK + at).cast())
                    }))
                };
                let (first, second) = (half(0), half(32));
                let mut w = array::from_fn(|n| if n < 8 { first[n] } else { second[n - 8] });
                for (quarter, k) in K.as_chunks::<16>().0.iter().enumerate() {
                    if quarter > 0 {
                        extend(&mut w);
                    }
                    for (n, (&w, &k)) in w.iter().zip(k).enumerate() {
                        let row = &mut schedule[quarter * 16 + n];
                        _mm256_storeu_si256(row.as_mut_ptr().cast(), w.add(__m256i::splat(k)));
                    }
                }
            }
            (0..LANES).for_each(|lane| rounds(state, &schedule, lane));
        }
        groups.len() * LANES * BLOCK
    }

    // The compression function of FIPS 180-4, written out so that every word stays in a register.
    #[inline(always)]
    unsafe fn compress<W: Words>(state: &mut [W; 8], w: &mut [W; 16]) {
        // SAFETY: the caller has the feature of W.
        unsafe {
            let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
            for (quarter, k) in K.as_chunks::<16>().0.iter().enumerate() {
                if quarter > 0 {
                    extend(w);
                }
                round!(a b c d e f g h, k[0], w[0]);
                round!(h a b c d e f g, k[1], w[1]);
                round!(g h a b c d e f, k[2], w[2]);
                round!(f g h a b c d e, k[3], w[3]);
                round!(e f g h a b c d, k[4], w[4]);
                round!(d e f g h a b c, k[5], w[5]);
                round!(c d e f g h a b, k[6], w[6]);
                round!(b c d e f g h a, k[7], w[7]);
                round!(a b c d e f g h, k[8], w[8]);
                round!(h a b c d e f g, k[9], w[9]);
                round!(g h a b c d e f, k[10], w[10]);
                round!(f g h a b c d e, k[11], w[11]);
                round!(e f g h a b c d, k[12], w[12]);
                round!(d e f g h a b c, k[13], w[13]);
                round!(c d e f g h a b, k[14], w[14]);
                round!(b c d e f g h a, k[15], w[15]);
            }
            for (word, value) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
                *word = word.add(value);
            }
        }
    }

    /// Compresses `count` blocks in each of 16 lanes.
    ///
    /// # Safety
    /// The processor has AVX-512F, and every slice of `blocks` holds `count` blocks.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn compress_avx512(
        words: &mut [[u32; MAX_LANES]; 8],
        blocks: &[&[u8]; MAX_LANES],
        count: usize,
    ) {
        // SAFETY: the caller's promises; loads and stores are the unaligned ones.
        unsafe {
            let mut state: [__m512i; 8] = array::from_fn(|i| _mm512_loadu_si512(words[i].as_ptr().cast()));
            for block in 0..count {
                let rows: [__m512i; 16] =
                    array::from_fn(|lane| _mm512_loadu_si512(blocks[lane].as_ptr().add(block * 64).cast()));
                compress(&mut state, &mut transpose_avx512(rows.map(|row| big_endian_avx512(row))));
            }
            for (word, value) in words.iter_mut().zip(state) {
                _mm512_storeu_si512(word.as_mut_ptr().cast(), value);
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn big_endian_avx512(row: __m512i) -> __m512i {
        let odd = _mm512_set1_epi32(0x00ff_00ff);
        _mm512_ternarylogic_epi32::<0xd8>(_mm512_ror_epi32::<8>(row), _mm512_rol_epi32::<8>(row), odd)
    }

    // Lanes come as rows; the compression wants the first words of all lanes, then the second ones, ...
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn transpose_avx512(rows: [__m512i; 16]) -> [__m512i; 16] {
        let pairs: [__m512i; 16] = array::from_fn(|n| match n % 2 {
            0 => _mm512_unpacklo_epi32(rows[n], rows[n + 1]),
            _ => _mm512_unpackhi_epi32(rows[n - 1], rows[n]),
        });
        let fours: [__m512i; 16] = array::from_fn(|n| {
            let (low, high) = (pairs[n / 4 * 4 + n % 4 / 2], pairs[n / 4 * 4 + n % 4 / 2 + 2]);
            if n % 2 == 0 { _mm512_unpacklo_epi64(low, high) } else { _mm512_unpackhi_epi64(low, high) }
        });
        // Now fours[4n + c] holds, in its quarter q, word 4q + c of lanes 4n to 4n + 3.
        array::from_fn(|word| {
            let (q, c) = (word / 4, word % 4);
            let (low, high) = match q % 2 {
                0 => (
                    _mm512_shuffle_i32x4::<0x88>(fours[c], fours[4 + c]),
                    _mm512_shuffle_i32x4::<0x88>(fours[8 + c], fours[12 + c]),
                ),
                _ => (
                    _mm512_shuffle_i32x4::<0xdd>(fours[c], fours[4 + c]),
                    _mm512_shuffle_i32x4::<0xdd>(fours[8 + c], fours[12 + c]),
                ),
            };
            match q / 2 {
                0 => _mm512_shuffle_i32x4::<0x88>(low, high),
                _ => _mm512_shuffle_i32x4::<0xdd>(low, high),
            }
        })
    }

    /// Compresses `count` blocks in each of the first 8 lanes.
    ///
    /// # Safety
    /// The processor has AVX2, and the first 8 slices of `blocks` hold `count` blocks.
    #[target_feature(enable = "avx2")]
    pub unsafe fn compress_avx2(
        words: &mut [[u32; MAX_LANES]; 8],
        blocks: &[&[u8]; MAX_LANES],
        count: usize,
    ) {
        // SAFETY: the caller's promises; loads and stores are the unaligned ones.
        unsafe {
            let mut state: [__m256i; 8] = array::from_fn(|i| _mm256_loadu_si256(words[i].as_ptr().cast()));
            for block in 0..count {
                let half = |at: usize| {
                    transpose_avx2(array::from_fn(|lane| {
                        _mm256_loadu_si256(blocks[lane].as_ptr().add(block * 64 + at).cast())
                    }))
                };
                let (first, second) = (half(0), half(32));
                compress(&mut state, &mut array::from_fn(|n| if n < 8 { first[n] } else { second[n - 8] }));
            }
            for (word, value) in words.iter_mut().zip(state) {
                _mm256_storeu_si256(word.as_mut_ptr().cast(), value);
            }
        }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn transpose_avx2(rows: [__m256i; 8]) -> [__m256i; 8] {
        #[rustfmt::skip]
        let swap = _mm256_setr_epi8(
            3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12,
            3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12,
        );
        let rows: [__m256i; 8] = array::from_fn(|n| _mm256_shuffle_epi8(rows[n], swap));
        let pairs: [__m256i; 8] = array::from_fn(|n| match n % 2 {
            0 => _mm256_unpacklo_epi32(rows[n], rows[n + 1]),
            _ => _mm256_unpackhi_epi32(rows[n - 1], rows[n]),
        });
        let fours: [__m256i; 8] = array::from_fn(|n| {
            let (low, high) = (pairs[n / 4 * 4 + n % 4 / 2], pairs[n / 4 * 4 + n % 4 / 2 + 2]);
            if n % 2 == 0 { _mm256_unpacklo_epi64(low, high) } else { _mm256_unpackhi_epi64(low, high) }
        });
        array::from_fn(|word| match word / 4 {
            0 => _mm256_permute2x128_si256::<0x20>(fours[word], fours[word + 4]),
            _ => _mm256_permute2x128_si256::<0x31>(fours[word - 4], fours[word]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_long_message_compresses_as_the_sha2_package_does() {
        let data: Vec<u8> = (0..BLOCK * 37).map(|i| (i * i / 7) as u8).collect();
        for kernel in Kernel::available() {
            for blocks in [1, 7, 8, 9, 15, 16, 17, 24, 37] {
                let (mut states, mut expected) = (States::default(), States::default());
                states.start(0);
                expected.start(0);
                states.compress(kernel, &[(0, &data[..blocks * BLOCK])]);
                expected.compress_one(Kernel::Single, 0, &data[..blocks * BLOCK]);
                assert_eq!(states.digest(0), expected.digest(0), "{kernel:?}, {blocks} blocks");
            }
        }
    }

    #[test]
    fn every_kernel_compresses_as_the_sha2_package_does() {
        for kernel in Kernel::available() {
            let data: Vec<u8> = (0..BLOCK * 3 * kernel.lanes()).map(|i| (i * i / 7) as u8).collect();
            for alive in 1..=kernel.lanes() {
                let (mut states, mut expected) = (States::default(), States::default());
                let inputs: Vec<(usize, &[u8])> =
                    data.chunks(BLOCK * 3).enumerate().skip(kernel.lanes() - alive).collect();
                for (lane, blocks) in &inputs {
                    states.start(*lane);
                    expected.start(*lane);
                    expected.compress_one(Kernel::Single, *lane, blocks);
                }
                states.compress(kernel, &inputs);
                for (lane, _) in inputs {
                    assert_eq!(
                        states.digest(lane),
                        expected.digest(lane),
                        "{kernel:?}, {alive} lanes, lane {lane}"
                    );
                }
            }
        }
    }
}
