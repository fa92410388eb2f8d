/* Tinyforge: a compiled model that learns on the chip. See firmware/src/abi.rs, which defines what is declared here.
 *
 * A library holds one model. Every function gives 0 or an enum tinyforge_fault. One call at a time: a call while
 * another runs gives TINYFORGE_NOT_STARTED. Nothing allocates; the stack that is needed is in the size report. */
#ifndef TINYFORGE_H
#define TINYFORGE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum tinyforge_fault {
    TINYFORGE_OK = 0,
    TINYFORGE_INPUT = 1,        /* an input of the wrong length */
    TINYFORGE_LABEL = 2,        /* a label that is no class */
    TINYFORGE_LOSS = 3,         /* the loss is not finite: nothing was updated */
    TINYFORGE_REGION = 4,       /* the region is not whole erase units, or holds fewer than two checkpoints */
    TINYFORGE_FLASH_READ = 5,
    TINYFORGE_FLASH_WRITE = 6,
    TINYFORGE_FLASH_ERASE = 7,
    TINYFORGE_FLASH_VERIFY = 8, /* what was read back differs: the older checkpoint still stands */
    TINYFORGE_EMPTY = 9,        /* there is no checkpoint */
    TINYFORGE_FOREIGN = 10,     /* there are checkpoints, all of another model or scheme */
    TINYFORGE_NULL = 11,        /* a null pointer */
    TINYFORGE_NOT_STARTED = 12  /* before tinyforge_start, or during another call */
};

/* The model's sizes, and the units of flash that the library was built for. */
extern const uint32_t tinyforge_input_len;   /* numbers of one example */
extern const uint32_t tinyforge_classes;
extern const uint32_t tinyforge_batch;       /* examples of one training step */
extern const uint32_t tinyforge_write_bytes;
extern const uint32_t tinyforge_erase_bytes;

/* A flash driver. The functions give 0 for success. Offsets and lengths come in whole units: tinyforge_write_bytes for
 * reading and writing, tinyforge_erase_bytes for erasing. start and len are the region for checkpoints: whole erase
 * units, at least two times slot_bytes of struct tinyforge_counters. Power may fail during any of the calls. */
struct tinyforge_flash {
    void *context;
    uint32_t start;
    uint32_t len;
    int32_t (*read)(void *context, uint32_t at, uint8_t *bytes, uint32_t len);
    int32_t (*write)(void *context, uint32_t at, const uint8_t *bytes, uint32_t len);
    int32_t (*erase)(void *context, uint32_t at, uint32_t len);
};

struct tinyforge_counters {
    uint64_t seed;
    uint64_t examples;   /* learnt from: where to go on in a stream of them */
    uint32_t steps;      /* complete ones */
    uint32_t loads;      /* times this run came back from flash */
    uint32_t digest;     /* CRC-32 of what the model has learnt */
    uint32_t slot_bytes; /* bytes of flash that one checkpoint takes */
};

/* Sets the weights of the imported file and the counters to zero. Learning rates are of weights and of biases. */
uint8_t tinyforge_start(uint64_t seed, float rate, float bias_rate);

/* Where an example may be written for the next tinyforge_infer: tinyforge_input_len numbers. NULL before
 * tinyforge_start. Other calls may overwrite it: ask and write anew for every example. */
int8_t *tinyforge_input(void);

/* The class of an example: of the one at input, or with NULL of the one in tinyforge_input. */
uint8_t tinyforge_infer(const int8_t *input, uint16_t *class_index);

/* Where an example may be written for the next tinyforge_train. NULL before tinyforge_start. */
int8_t *tinyforge_train_input(void);

/* Learns from one example: from the one at input, or with NULL from the one in tinyforge_train_input. The last of
 * tinyforge_batch examples ends a step. A negative label leaves the example out. loss may be NULL. */
uint8_t tinyforge_train(const int8_t *input, int32_t label, float *loss);

/* Classifies examples until next gives a negative label. next writes an example, tinyforge_input_len numbers, and gives
 * its label; it must not call the model. */
struct tinyforge_score {
    uint32_t right;
    uint32_t seen;
};
uint8_t tinyforge_evaluate(int32_t (*next)(void *context, int8_t *input), void *context, struct tinyforge_score *score);

/* Learning rates of the next steps. */
uint8_t tinyforge_set_rates(float rate, float bias_rate);

/* Saves, or goes on from the newest checkpoint. Neither ever loses the last complete one. */
uint8_t tinyforge_save(const struct tinyforge_flash *flash);
uint8_t tinyforge_load(const struct tinyforge_flash *flash);

uint8_t tinyforge_counters(struct tinyforge_counters *counters);

#ifdef __cplusplus
}
#endif

#endif
