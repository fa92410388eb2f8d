/* Learns a class that is new to the model from a stream of examples, in C:
 *
 *     learn-c TRAINING TEST FLASH STEPS [SEED RATE BIAS_RATE]
 *
 * Rates are in millionths.
 *
 * The files of samples and what is printed are those of the Rust example beside this one. The flash is a file of the
 * emulator's host; on a chip the three functions below call its flash controller. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tinyforge.h"

#define EVERY 50u

struct samples {
    FILE *file;
    uint32_t count;
    uint32_t next;
    int is_last; /* whether only the last class is given, or only the others */
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
    struct samples samples = {fopen(path, "rb"), 0, 0, 0};
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

/* The next sample of the wanted classes; -1 behind the last. */
static int32_t next_sample(void *context, int8_t *to) {
    struct samples *samples = context;
    while (samples->next < samples->count) {
        int32_t label = read_sample(samples, samples->next++, to);
        if ((label == (int32_t)tinyforge_classes - 1) == samples->is_last) {
            return label;
        }
    }
    return -1;
}

static struct tinyforge_score score_of(struct samples *test, int is_last) {
    struct tinyforge_score score;
    test->next = 0;
    test->is_last = is_last;
    check(tinyforge_evaluate(next_sample, test, &score), "evaluate");
    return score;
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

static struct tinyforge_flash open_flash(const char *path, uint32_t len) {
    struct tinyforge_flash flash = {NULL, 0, len, read_flash, write_flash, erase_flash};
    flash.context = fopen(path, "r+b");
    if (flash.context == NULL) {
        flash.context = fopen(path, "w+b");
        must(flash.context != NULL && erase_flash(flash.context, 0, len) == 0, path);
    }
    return flash;
}

/* Accuracy of all classes, and of the last, which is new to the model. */
static void report(const char *word, struct samples *test) {
    struct tinyforge_counters counters;
    struct tinyforge_score known = score_of(test, 0), new = score_of(test, 1);
    check(tinyforge_counters(&counters), "counters");
    printf("%s steps=%lu right=%lu of=%lu new=%lu of=%lu digest=%08lx\n", word, (unsigned long)counters.steps,
           (unsigned long)(known.right + new.right), (unsigned long)(known.seen + new.seen), (unsigned long)new.right,
           (unsigned long)new.seen, (unsigned long)counters.digest);
}

/* Divided as double, so that it is the float next to the decimal number, as on the host. */
static float rate_of(const char *millionths) {
    return (float)((double)strtoul(millionths, NULL, 10) / 1e6);
}

int main(int count, char **words) {
    must(count == 5 || count == 8, "usage: learn-c TRAINING TEST FLASH STEPS [SEED RATE BIAS_RATE]");
    struct samples training = open_samples(words[1]), test = open_samples(words[2]);
    uint32_t steps = (uint32_t)strtoul(words[4], NULL, 10);
    uint64_t seed = count == 8 ? strtoul(words[5], NULL, 10) : 11;
    float rate = count == 8 ? rate_of(words[6]) : 0.01f, bias_rate = count == 8 ? rate_of(words[7]) : 0.01f;
    struct tinyforge_counters counters;

    must(tinyforge_input() == NULL && tinyforge_infer(NULL, NULL) == TINYFORGE_NOT_STARTED, "nothing before the start");
    check(tinyforge_start(seed, rate, bias_rate), "start");
    must(tinyforge_infer(NULL, NULL) == TINYFORGE_NULL && tinyforge_save(NULL) == TINYFORGE_NULL, "null pointers");
    check(tinyforge_counters(&counters), "counters");
    /* Two checkpoints take turns. */
    struct tinyforge_flash flash = open_flash(words[3], 2 * counters.slot_bytes);
    uint8_t loaded = tinyforge_load(&flash);
    if (loaded == TINYFORGE_OK) {
        printf("goes on from a checkpoint\n");
    } else {
        must(loaded == TINYFORGE_EMPTY, "load");
    }
    report("before", &test);
    check(tinyforge_counters(&counters), "counters");
    while (counters.steps < steps) {
        int32_t label = read_sample(&training, counters.examples, tinyforge_train_input());
        check(tinyforge_train(NULL, label, NULL), "train");
        check(tinyforge_counters(&counters), "counters");
        if (counters.examples % EVERY == 0 || counters.steps == steps) {
            check(tinyforge_save(&flash), "save");
        }
    }
    report("after", &test);
    return 0;
}
