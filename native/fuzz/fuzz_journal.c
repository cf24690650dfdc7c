/* A volume and its journal under any sequence of batches, syncs, restarts and torn tails, against
 * an array of bytes that is kept for each seq:
 *
 * - a read returns what the writes before it, in the same batch too, left;
 * - after a restart everything is there; after one that lost any suffix of what was not synced, the
 *   volume is the array as it was at one seq, not before the last sync;
 * - the log goes on from there.
 *
 * Input: operations of a kind (1) and its numbers; see `run`. */
#include <errno.h>

#include "crc32c.h"
#include "fuzz.h"
#include "rig.h"

enum {
    SEGMENT = 32 << 10,
    READY = 8,
    UNIT = 64,
    VOLUME = 16 << 10,
    MAX_STATES = 64,
    MAX_BATCH = 4,
};

struct world {
    struct rig rig;
    uint64_t synced_seq;
    uint64_t synced_slot_position; /* of the current segment, at the last sync */
    uint32_t synced_slot;
    uint8_t states[MAX_STATES + 1][VOLUME]; /* by seq */
};

static struct world world;
static uint8_t payloads[MAX_BATCH][VOLUME];

static uint64_t seq(void)
{
    return world.rig.volume->seq;
}

static void expect_state(uint64_t wanted)
{
    static uint8_t got[VOLUME];
    struct bd_read_fault fault;
    CHECK_EQ(bd_volume_read(world.rig.volume, 0, VOLUME, got, false, &fault), 0);
    CHECK(memcmp(got, world.states[wanted], VOLUME) == 0);
}

static void note_sync(void)
{
    world.synced_seq = seq();
    world.synced_slot = world.rig.journal->current ? world.rig.journal->current->slot : 0;
    world.synced_slot_position = world.rig.journal->current ? world.rig.journal->position : 0;
}

/* Up to MAX_BATCH actions, submitted as one. */
static void batch(struct input *input)
{
    struct bd_action actions[MAX_BATCH] = {0};
    static uint8_t expected[MAX_BATCH][VOLUME];
    int count = 1 + (int)(take(input, 1) % MAX_BATCH);
    uint64_t next = seq();
    for (int i = 0; i < count; i++) {
        struct bd_action *action = &actions[i];
        uint64_t head = take(input, 1);
        action->kind = (uint8_t)(head % 4); /* READ, WRITE, UNMAP, ZERO */
        action->offset = take(input, 1) % (VOLUME / UNIT) * UNIT;
        action->length = (1 + take(input, 1) % 64) * UNIT; /* one record */
        action->data = payloads[i];
        action->sync = head & 0x80;
        if (action->length > VOLUME - action->offset)
            action->length = VOLUME - action->offset;
        if (action->kind == BD_ACTION_READ) {
            memcpy(expected[i], world.states[next] + action->offset, action->length);
            continue;
        }
        uint8_t fill = action->kind == BD_ACTION_WRITE ? (uint8_t)take(input, 1) : 0;
        memset(payloads[i], fill, action->length);
        memcpy(world.states[next + 1], world.states[next], VOLUME);
        next++;
        memset(world.states[next] + action->offset, fill, action->length);
    }
    bd_batch_execute(world.rig.volume, actions, count, world.rig.now_ns);
    for (int i = 0; i < count; i++) {
        CHECK(actions[i].state == BD_ACTION_DONE ||
              (actions[i].sync && actions[i].state == BD_ACTION_WAIT_SYNC));
        CHECK_EQ(actions[i].status, 0);
        if (actions[i].kind == BD_ACTION_READ)
            CHECK(memcmp(payloads[i], expected[i], actions[i].length) == 0);
    }
    CHECK_EQ(seq(), next);
}

static void restart(void)
{
    rig_restart(&world.rig);
    rig_holes(&world.rig, 1);
}

/* Zero, or fill with rubbish, everything of the log from `lost` bytes before its end on, but
 * nothing that a sync has seen. */
static void tear(struct input *input)
{
    struct bd_segment *current = world.rig.journal->current;
    if (current == NULL)
        return;
    uint64_t end = world.rig.journal->position;
    uint64_t first = BD_SEGMENT_HEADER;
    if (world.synced_slot == current->slot && world.synced_slot_position > first)
        first = world.synced_slot_position;
    if (first >= end)
        return;
    uint64_t lost = 1 + take(input, 2) % (end - first);
    uint8_t fill = (uint8_t)take(input, 1);
    memset(world.rig.files[current->slot].bytes + end - lost, fill, lost);
    restart();
    CHECK(seq() >= world.synced_seq);
}

static void run(struct input *input)
{
    while (input->left > 0 && seq() + MAX_BATCH < MAX_STATES) {
        switch (take(input, 1) % 8) {
        case 0:
            CHECK_EQ(bd_journal_sync(world.rig.journal, NULL), 0);
            note_sync();
            break;
        case 1: {
            uint64_t before = seq();
            restart();
            CHECK_EQ(seq(), before);
            break;
        }
        case 2:
            tear(input);
            break;
        case 3:
            world.rig.now_ns += 1 + take(input, 1) * 1000 * 1000 * 1000;
            break;
        default:
            batch(input);
        }
        if (world.rig.journal->ready_count < 3)
            return;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    world.synced_seq = 0;
    world.synced_slot = 0;
    world.synced_slot_position = 0;
    memset(world.states[0], 0, VOLUME);
    rig_init(&world.rig, SEGMENT, READY, VOLUME);
    rig_holes(&world.rig, 1);
    run(&input);
    expect_state(seq());
    restart();
    expect_state(seq());
    rig_destroy(&world.rig);
    return 0;
}
