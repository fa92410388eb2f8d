// The C functions of a library made of one .cu file: `entries` stands before this.
#pragma once

extern "C" __attribute__((visibility("default"))) const shim::Entry *tinyforge_find(const char *name) {
  for (const shim::Entry &entry : entries) {
    if (strcmp(entry.name, name) == 0) return &entry;
  }
  return nullptr;
}

extern "C" __attribute__((visibility("default"))) unsigned tinyforge_operands(const shim::Entry *entry) {
  return entry->operands;
}

extern "C" __attribute__((visibility("default"))) const char *tinyforge_launch(const shim::Entry *entry,
                                                                               const unsigned *grid, unsigned threads,
                                                                               unsigned storage, bool descending,
                                                                               void **args) {
  return shim::run(entry->body, grid, threads, storage, descending, args);
}
