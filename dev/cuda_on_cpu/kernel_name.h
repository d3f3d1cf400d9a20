// Emulation: the name of a kernel, for messages. A function pointer is all that a launch knows of its kernel, so the name is
// looked up in the symbol table of the program's own file; unlike dladdr() this needs no special link option. Where there is
// no table (`strip`) or no such file (not Linux) the message has the kernel's address instead.
#pragma once

#include <cxxabi.h>
#include <elf.h>
#include <link.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

namespace lnfree::cuda::emulation {

// How far from the addresses in its file the program was loaded. The program itself is the first that is listed.
inline uintptr_t load_offset() {
    uintptr_t offset = 0;
    const auto first = [](dl_phdr_info* info, size_t, void* result) {
        *static_cast<uintptr_t*>(result) = info->dlpi_addr;
        return 1;
    };
    ::dl_iterate_phdr(first, &offset);
    return offset;
}

// `count` records of type T at byte `offset` of `file`; empty where there are none.
template <class T>
std::vector<T> read_records(std::ifstream& file, uint64_t offset, uint64_t count) {
    std::vector<T> records(count);
    file.seekg(static_cast<std::streamoff>(offset));
    file.read(reinterpret_cast<char*>(records.data()), static_cast<std::streamsize>(count * sizeof(T)));
    return file ? records : std::vector<T>();
}

// The linker's name of the function that begins at `address`, or "" (source: the ELF specification, elf(5)).
inline std::string symbol_at(uintptr_t address) {
    std::ifstream file("/proc/self/exe", std::ios::binary);
    const auto header = read_records<ElfW(Ehdr)>(file, 0, 1);
    if (header.empty() || std::memcmp(header[0].e_ident, ELFMAG, SELFMAG) != 0) return "";
    const auto sections = read_records<ElfW(Shdr)>(file, header[0].e_shoff, header[0].e_shnum);
    for (const auto& section : sections) {
        if (section.sh_type != SHT_SYMTAB || section.sh_link >= sections.size()) continue;
        const auto& names_at = sections[section.sh_link];
        auto names = read_records<char>(file, names_at.sh_offset, names_at.sh_size);
        names.push_back('\0');
        for (const auto& symbol :
             read_records<ElfW(Sym)>(file, section.sh_offset, section.sh_size / sizeof(ElfW(Sym)))) {
            const bool is_function = (symbol.st_info & 0xf) == STT_FUNC;
            if (is_function && symbol.st_value == address && symbol.st_name < names.size())
                return &names[symbol.st_name];
        }
    }
    return "";
}

// As it is written in the source, without return type, namespace and parameters: "layernorm_forward<float>".
inline std::string short_name(const std::string& symbol) {
    int status = 0;
    const std::unique_ptr<char, void (*)(void*)> demangled(
        abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status), std::free);
    std::string name = status == 0 ? demangled.get() : symbol;
    const std::string own_namespace = "lnfree::cuda::";
    for (size_t at; (at = name.find(own_namespace)) != std::string::npos;) name.erase(at, own_namespace.size());
    // A function template's name begins with the return type, which is void; parameters follow the last closing angle
    // bracket outside parentheses, or the plain name.
    if (name.rfind("void ", 0) == 0) name.erase(0, 5);
    int depth = 0;
    for (size_t i = 0; i < name.size(); ++i) {
        if (name[i] == '<') ++depth;
        if (name[i] == '>') --depth;
        if (name[i] == '(' && depth == 0 && name.compare(i, 21, "(anonymous namespace)") != 0) return name.substr(0, i);
    }
    return name;
}

inline std::string kernel_name(const void* kernel) {
    const auto address = reinterpret_cast<uintptr_t>(kernel);
    const std::string symbol = symbol_at(address - load_offset());
    if (!symbol.empty()) return short_name(symbol);
    std::ostringstream text;
    text << "at 0x" << std::hex << address;
    return text.str();
}

}  // namespace lnfree::cuda::emulation
