/* Learns from a stream of examples, in C: learn-c TRAINING TEST FLASH STEPS
 *
 * The files of samples and what is printed are those of the Rust example beside this one. The flash is a file of the
 * emulator's host; on a chip the three functions below call its flash controller. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tinyforge.h"

#define FLASH_BYTES 2048u
#define EVERY 50u

struct samples {
    FILE *file;
    uint32_t count;
};

static void must(int is_good, const char *what) {
    if (!is_good) {
        printf("failed: %s\n", what);
        exit(1);
    }
}

static void check(uint8_t fault, const char *what) {
    if (fault != TINYFORGE_OK) {
        printf("fault %u: %s\n", fault, what);
        exit(1);
    }
}

static struct samples open_samples(const char *path) {
    struct samples samples = {fopen(path, "rb"), 0};
    uint8_t magic[4];
    uint32_t len = 0;
    must(samples.file != NULL, path);
    must(fread(magic, 4, 1, samples.file) == 1 && memcmp(magic, "TFSM", 4) == 0, "a file of samples");
    must(fread(&samples.count, 4, 1, samples.file) == 1 && fread(&len, 4, 1, samples.file) == 1, "its head");
    must(len == tinyforge_input_len && samples.count > 0, "samples of the model's length");
    return samples;
}

static int32_t read_sample(struct samples *samples, uint64_t index, int8_t *to) {
    int32_t label = 0;
    long at = 12 + (long)(index % samples->count) * (long)(4 + tinyforge_input_len);
    must(fseek(samples->file, at, SEEK_SET) == 0 && fread(&label, 4, 1, samples->file) == 1, "a label");
    must(fread(to, 1, tinyforge_input_len, samples->file) == tinyforge_input_len, "a sample");
    return label;
}

static int32_t read_flash(void *file, uint32_t at, uint8_t *bytes, uint32_t len) {
    return fseek(file, (long)at, SEEK_SET) == 0 && fread(bytes, 1, len, file) == len ? 0 : 1;
}

static int32_t write_flash(void *file, uint32_t at, const uint8_t *bytes, uint32_t len) {
    return fseek(file, (long)at, SEEK_SET) == 0 && fwrite(bytes, 1, len, file) == len && fflush(file) == 0 ? 0 : 1;
}

static int32_t erase_flash(void *file, uint32_t at, uint32_t len) {
    static const uint8_t erased[8] = {255, 255, 255, 255, 255, 255, 255, 255};
    for (uint32_t i = 0; i < len; i += sizeof erased) {
        if (write_flash(file, at + i, erased, sizeof erased) != 0) {
            return 1;
        }
    }
    return 0;
}

static struct tinyforge_flash open_flash(const char *path) {
    struct tinyforge_flash flash = {NULL, 0, FLASH_BYTES, read_flash, write_flash, erase_flash};
    flash.context = fopen(path, "r+b");
    if (flash.context == NULL) {
        flash.context = fopen(path, "w+b");
        must(flash.context != NULL && erase_flash(flash.context, 0, FLASH_BYTES) == 0, path);
    }
    return flash;
}

static void report(const char *word, struct samples *test) {
    struct tinyforge_counters counters;
    uint32_t right = 0;
    for (uint32_t i = 0; i < test->count; i++) {
        uint16_t class_index = 0;
        int32_t label = read_sample(test, i, tinyforge_input());
        check(tinyforge_infer(&class_index), "infer");
        right += class_index == label;
    }
    check(tinyforge_counters(&counters), "counters");
    printf("%s steps=%lu right=%lu of=%lu digest=%08lx\n", word, (unsigned long)counters.steps, (unsigned long)right,
           (unsigned long)test->count, (unsigned long)counters.digest);
}

int main(int count, char **words) {
    must(count == 5, "usage: learn-c TRAINING TEST FLASH STEPS");
    struct samples training = open_samples(words[1]), test = open_samples(words[2]);
    struct tinyforge_flash flash = open_flash(words[3]);
    uint32_t steps = (uint32_t)strtoul(words[4], NULL, 10);
    struct tinyforge_counters counters;

    must(tinyforge_input() == NULL && tinyforge_infer(NULL) == TINYFORGE_NOT_STARTED, "nothing before the start");
    check(tinyforge_start(11, 0.01f, 0.01f), "start");
    must(tinyforge_infer(NULL) == TINYFORGE_NULL && tinyforge_save(NULL) == TINYFORGE_NULL, "null pointers");
    check(tinyforge_counters(&counters), "counters");
    must(2 * counters.slot_bytes <= FLASH_BYTES && tinyforge_batch == 1, "the model fits the example");
    uint8_t loaded = tinyforge_load(&flash);
    if (loaded == TINYFORGE_OK) {
        printf("goes on from a checkpoint\n");
    } else {
        must(loaded == TINYFORGE_EMPTY, "load");
    }
    report("before", &test);
    check(tinyforge_counters(&counters), "counters");
    for (uint32_t step = counters.steps; step < steps; step++) {
        int32_t label = read_sample(&training, step, tinyforge_train_input());
        check(tinyforge_train(&label, 1, NULL), "train");
        if ((step + 1) % EVERY == 0 || step + 1 == steps) {
            check(tinyforge_save(&flash), "save");
        }
    }
    report("after", &test);
    return 0;
}
