//! The first instructions behind the jump: from the state the old kernel leaves to the one the new expects.
//!
//! Decides only: addresses in, bytes out. The old kernel jumps in 64-bit mode, with each page where
//! its address says, without interrupts, and with a table of segments that is gone. The x86 boot
//! protocol wants flat segments from a table that is there, the address of `boot_params` in `rsi`, and a
//! jump to the 64-bit entry. Up to that entry a stack is needed for one far return.

/// How much of memory [`trampoline`] fills: a page, the end of which is the stack.
pub const ROOM: usize = 4096;

// The selectors that the boot protocol calls __BOOT_CS and __BOOT_DS, and what it wants behind them:
// flat, 4 GiB, readable; code of 64 bits, and data that can be written.
const CODE_SELECTOR: u8 = 0x10;
const DATA_SELECTOR: u8 = 0x18;
const DESCRIPTORS: [u64; 4] = [0, 0, 0x00af_9a00_0000_ffff, 0x00cf_9200_0000_ffff];

// Behind the code; aligned, as processors like it.
const TABLE: usize = 0x80;
const TABLE_POINTER: usize = TABLE + size_of_val(&DESCRIPTORS);

/// Returns the page that is to lie at the physical address `here`, and to be entered at its first byte.
pub fn trampoline(here: u64, boot_params: u64, entry: u64) -> Vec<u8> {
    let mut code = vec![
        0xfa, // cli
        0xfc, // cld
    ];
    code.extend(load(*b"\x48\xbc", here + ROOM as u64)); // movabs rsp, the end of this page
    code.extend(load(*b"\x48\xb8", here + TABLE_POINTER as u64)); // movabs rax, the pointer to the table
    code.extend([0x0f, 0x01, 0x10]); // lgdt [rax]
    // `cs` changes by a far return only: to behind this one, which is 10 + 2 + 1 + 2 bytes long.
    let behind = code.len() + 15;
    code.extend(load(*b"\x48\xb8", here + behind as u64)); // movabs rax, behind
    code.extend([0x6a, CODE_SELECTOR]); // push the selector
    code.extend([0x50]); // push rax
    code.extend([0x48, 0xcb]); // retfq
    code.extend([0xb8, DATA_SELECTOR, 0, 0, 0]); // mov eax, the selector
    code.extend([0x8e, 0xd8]); // mov ds, eax
    code.extend([0x8e, 0xc0]); // mov es, eax
    code.extend([0x8e, 0xd0]); // mov ss, eax
    code.extend([0x8e, 0xe0]); // mov fs, eax
    code.extend([0x8e, 0xe8]); // mov gs, eax
    code.extend(load(*b"\x48\xbe", boot_params)); // movabs rsi, boot_params
    code.extend(load(*b"\x48\xb8", entry)); // movabs rax, entry
    code.extend([0xff, 0xe0]); // jmp rax

    let mut page = code;
    page.resize(TABLE, 0);
    page.extend(DESCRIPTORS.iter().flat_map(|descriptor| descriptor.to_le_bytes()));
    page.extend((size_of_val(&DESCRIPTORS) as u16 - 1).to_le_bytes());
    page.extend((here + TABLE as u64).to_le_bytes());
    page.resize(ROOM, 0);
    page
}

/// An instruction that loads a register with 64 bits.
fn load(instruction: [u8; 2], value: u64) -> impl Iterator<Item = u8> {
    instruction.into_iter().chain(value.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    // What the bytes mean is not ours to say.
    #[test]
    fn a_disassembler_reads_the_instructions_that_were_meant() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("page");
        let page = trampoline(0x7_ffff_d000, 0x7_ffff_e000, 0x100_0200);
        assert_eq!(page.len(), ROOM);
        fs::write(&file, &page[..TABLE]).unwrap();
        let output = Command::new("objdump")
            .args(["--disassemble-all", "--target=binary", "--architecture=i386:x86-64"])
            .args(["--disassembler-options=intel", "--no-show-raw-insn", "--adjust-vma=0x7ffffd000"])
            .arg(&file)
            .output()
            .expect("objdump comes with the C compiler");
        let text = String::from_utf8(output.stdout).unwrap();
        let instructions: Vec<String> = text
            .lines()
            .filter_map(|line| line.split_once(":\t"))
            .map(|(_, words)| words.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        let wanted = [
            "cli",
            "cld",
            "movabs rsp,0x7ffffe000",
            "movabs rax,0x7ffffd0a0",
            "lgdt [rax]",
            "movabs rax,0x7ffffd028",
            "push 0x10",
            "push rax",
            "retfq",
            "mov eax,0x18",
            "mov ds,eax",
            "mov es,eax",
            "mov ss,eax",
            "mov fs,eax",
            "mov gs,eax",
            "movabs rsi,0x7ffffe000",
            "movabs rax,0x1000200",
            "jmp rax",
        ];
        assert_eq!(instructions[..wanted.len()], wanted, "{text}");
        // Where the far return leads to.
        assert!(text.contains("7ffffd028:\tmov    eax,0x18"), "{text}");
        assert_eq!(
            page[TABLE_POINTER..][..10],
            [&31_u16.to_le_bytes()[..], &0x7_ffff_d080_u64.to_le_bytes()].concat()
        );
    }
}
