/* Large appends: padded to whole pages, and let go of by the page cache where that is quicker. */
#include "ways.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "rig.h"
#include "tap.h"

enum { PAGE = 4096, MIB = 1 << 20, SEGMENT = 8 * MIB, SMALL_SEGMENT = MIB, VOLUME = 1 << 26 };

static const uint64_t us = 1000;

/* -- which way */

static void append(struct bd_ways *ways, const uint64_t ns[BD_WAYS], int count, int taken[BD_WAYS])
{
    for (int i = 0; i < count; i++) {
        enum bd_way way = bd_ways_next(ways);
        taken[way]++;
        bd_ways_took(ways, way, MIB, ns[way]);
    }
}

static void test_the_quicker_way_is_taken(void)
{
    const uint64_t quick_disk[BD_WAYS] = {2000 * us, 800 * us};
    const uint64_t slow_disk[BD_WAYS] = {200 * us, 9000 * us};
    struct bd_ways ways;
    int taken[BD_WAYS] = {0};
    bd_ways_init(&ways);
    append(&ways, quick_disk, 1000, taken);
    CHECK(taken[BD_WAY_LEAVES] > 900);
    bd_ways_init(&ways);
    memset(taken, 0, sizeof taken);
    append(&ways, slow_disk, 10000, taken);
    CHECK(taken[BD_WAY_LEAVES] > 0);
    CHECK(taken[BD_WAY_LEAVES] < 25); /* a try costs everybody who appends */
}

static void test_what_becomes_slow_is_left(void)
{
    const uint64_t before[BD_WAYS] = {2000 * us, 800 * us};
    const uint64_t after[BD_WAYS] = {300 * us, 5000 * us};
    struct bd_ways ways;
    int taken[BD_WAYS] = {0};
    bd_ways_init(&ways);
    append(&ways, before, 100000, taken);
    CHECK_EQ(ways.chosen, BD_WAY_LEAVES);
    memset(taken, 0, sizeof taken);
    append(&ways, after, 100, taken);
    CHECK_EQ(ways.chosen, BD_WAY_STAYS);
    CHECK(taken[BD_WAY_LEAVES] < 20);
    memset(taken, 0, sizeof taken);
    append(&ways, before, 10000, taken);
    CHECK(taken[BD_WAY_LEAVES] > 9000);
}

/* Times that scatter around each other do not make it change again and again. */
static void test_equals_stay(void)
{
    struct bd_ways ways;
    bd_ways_init(&ways);
    int changes = 0;
    for (int i = 0; i < 10000; i++) {
        enum bd_way chosen = ways.chosen;
        enum bd_way way = bd_ways_next(&ways);
        uint64_t base = way == BD_WAY_LEAVES ? 900 * us : 600 * us; /* as much worth */
        bd_ways_took(&ways, way, MIB, base + (uint64_t)(i * 7919 % 100) * us);
        changes += ways.chosen != chosen;
    }
    CHECK(changes < 3);
}

/* -- whole pages */

static void test_a_large_group_ends_with_a_page_and_comes_back(void)
{
    for (uint64_t length = BD_LARGE_BYTES; length < BD_LARGE_BYTES + 8192; length += 1472) {
        struct rig rig;
        rig_init(&rig, SMALL_SEGMENT, 4, VOLUME);
        rig_write(&rig, 0, 512, 1);
        CHECK(rig.journal->position % PAGE != 0);
        rig_write(&rig, 4096, length, 2);
        CHECK_EQ(rig.journal->position % PAGE, 0);
        rig_write(&rig, 2 * MIB, 512, 3);
        rig_write(&rig, 3 * MIB, length, 4);
        rig_write(&rig, 3 * MIB, 512, 5);
        uint64_t lsn = rig.journal->next_lsn;
        CHECK_EQ(rig_restart(&rig), lsn - 1);
        CHECK_EQ(rig.volume->seq, 5);
        rig_expect(&rig, 0, 512, 1);
        rig_expect(&rig, 4096, length, 2);
        rig_expect(&rig, 2 * MIB, 512, 3);
        rig_expect(&rig, 3 * MIB, 512, 5);
        rig_expect(&rig, 3 * MIB + 512, length - 512, 4);
        rig_destroy(&rig);
    }
}

/* Whoever looks for a point in time reads on: what follows has no time of its own for a while. */
static void test_what_a_group_ends_with_does_not_turn_back_time(void)
{
    struct rig rig;
    rig_init(&rig, SMALL_SEGMENT, 4, VOLUME);
    for (uint8_t i = 0; i < 2; i++) {
        rig.now_ns += UINT64_C(3600) * 1000 * 1000 * 1000;
        uint64_t before = rig.journal->position;
        rig_write(&rig, 4096, BD_LARGE_BYTES, i); /* a mark, and the record */
        CHECK(rig.journal->position > before + 2 * BD_RECORD_HEADER + BD_LARGE_BYTES);
        rig_write(&rig, 0, 512, i); /* too soon for another mark */
        CHECK_EQ(rig.journal->marked_ns, rig.now_ns);
        rig_restart(&rig);
        CHECK_EQ(rig.last_ns, rig.now_ns);
    }
    rig_destroy(&rig);
}

static void test_a_torn_last_page_takes_no_more_than_itself(void)
{
    for (uint64_t kept = 0; kept < PAGE; kept += 448) {
        struct rig rig;
        rig_init(&rig, SMALL_SEGMENT, 4, VOLUME);
        rig_write(&rig, 0, BD_LARGE_BYTES, 1); /* a mark, the record, and what it is padded with */
        uint64_t records_end = BD_SEGMENT_HEADER + 2 * BD_RECORD_HEADER + BD_LARGE_BYTES;
        uint64_t end = rig.journal->position;
        if (records_end + kept < end)
            memset(rig.files[0].bytes + records_end + kept, 0xa5, end - records_end - kept);
        rig_restart(&rig);
        CHECK_EQ(rig.volume->seq, 1);
        rig_expect(&rig, 0, BD_LARGE_BYTES, 1);
        rig_write(&rig, 0, 512, 2);
        rig_restart(&rig);
        rig_expect(&rig, 0, 512, 2);
        rig_expect(&rig, 512, BD_LARGE_BYTES - 512, 1);
        rig_destroy(&rig);
    }
}

static void test_what_other_nodes_get_is_not_padded(void)
{
    struct rig rig;
    rig_init(&rig, SMALL_SEGMENT, 4, VOLUME);
    uint64_t seq;
    CHECK_EQ(bd_tap_open(rig.volume, 4 * MIB, &seq), 0);
    rig_write(&rig, 0, BD_LARGE_BYTES, 1);
    CHECK_EQ(rig.journal->position, BD_SEGMENT_HEADER + 2 * BD_RECORD_HEADER + BD_LARGE_BYTES);
    CHECK_EQ(bd_tap_close(rig.volume), 0);
    rig_destroy(&rig);
}

/* -- files */

struct store {
    int fd;
    struct bd_journal *journal;
    struct bd_place_table *table;
    struct bd_volume *volume;
};

static void store_open(struct store *store, enum bd_way way)
{
    char name[] = "ways-XXXXXX";
    store->fd = mkstemp(name);
    CHECK(store->fd >= 0);
    CHECK_EQ(unlink(name), 0);
    CHECK_EQ(posix_fallocate(store->fd, 0, SEGMENT), 0);
    store->journal = bd_journal_new((const uint8_t *)"0123456789abcdef", SEGMENT, 1);
    store->table = bd_table_new(MIB);
    store->volume = bd_volume_new(store->journal, store->table, 1, 1, RIG_CHUNK, VOLUME, 0, 0);
    struct bd_file file;
    bd_file_open_fd(&file, dup(store->fd));
    CHECK_EQ(bd_journal_add_ready(store->journal, 0, file), 0);
    store->journal->ways.chosen = way;
    store->journal->ways.until_other = UINT32_MAX;
}

static void store_close(struct store *store)
{
    bd_volume_free(store->volume);
    bd_table_free(store->table);
    bd_journal_free(store->journal);
    close(store->fd);
}

static void fill(uint8_t *data, size_t length, uint32_t seed)
{
    for (size_t i = 0; i < length; i++)
        data[i] = (uint8_t)((i * 2654435761u + seed) >> 11);
}

static void store_write(struct store *store, uint64_t offset, uint64_t length, uint32_t seed)
{
    uint8_t *data = malloc(length);
    fill(data, length, seed);
    struct bd_action action = {
        .kind = BD_ACTION_WRITE, .offset = offset, .length = length, .data = data};
    bd_batch_execute(store->volume, &action, 1, 1000 * 1000 * 1000);
    CHECK_EQ(action.state, BD_ACTION_DONE);
    CHECK_EQ(action.status, 0);
    uint8_t *read = malloc(length);
    struct bd_read_fault fault;
    CHECK_EQ(bd_volume_read(store->volume, offset, length, read, false, &fault), 0);
    CHECK_EQ(memcmp(read, data, length), 0);
    free(read);
    free(data);
}

/* Small and large ones, over pages that are dirty, that are cached and that are not. */
static void store_write_all(struct store *store)
{
    store_write(store, 0, MIB, 1);
    store_write(store, 0, 4096, 2);
    store_write(store, 8192, MIB, 3); /* its group begins within a page */
    store_write(store, 512, MIB - 512, 4);
    CHECK_EQ(bd_journal_sync(store->journal, NULL), 0);
    store_write(store, 4 * MIB, BD_LARGE_BYTES, 5);
    store_write(store, 5 * MIB, 512, 6);
    store_write(store, 6 * MIB, MIB, 7);
}

static void test_both_ways_leave_the_same_bytes(void)
{
    struct store stores[BD_WAYS];
    for (int way = 0; way < BD_WAYS; way++) {
        store_open(&stores[way], (enum bd_way)way);
        store_write_all(&stores[way]);
    }
    CHECK_EQ(stores[0].journal->position, stores[1].journal->position);
    CHECK_EQ(stores[0].journal->next_lsn, stores[1].journal->next_lsn);
    uint8_t *bytes[BD_WAYS];
    for (int way = 0; way < BD_WAYS; way++) {
        bytes[way] = malloc(SEGMENT);
        CHECK_EQ(pread(stores[way].fd, bytes[way], SEGMENT, 0), SEGMENT);
    }
    /* (Where the kernel or the file system cannot, both are the same way.) */
    CHECK(stores[BD_WAY_STAYS].journal->ways.ns[BD_WAY_LEAVES] == 0);
    for (uint64_t at = 0; at < stores[0].journal->position; at++)
        CHECK_EQ(bytes[0][at], bytes[1][at]);
    for (int way = 0; way < BD_WAYS; way++) {
        free(bytes[way]);
        store_close(&stores[way]);
    }
}

static void test_a_file_that_refuses_is_written_as_usual(void)
{
    struct store store;
    store_open(&store, BD_WAY_LEAVES);
    store.journal->segments[0]->file.no_once = true;
    store_write_all(&store);
    CHECK_EQ(store.journal->ways.ns[BD_WAY_LEAVES], 0);
    store_close(&store);
}

int main(void)
{
    test_the_quicker_way_is_taken();
    test_what_becomes_slow_is_left();
    test_equals_stay();
    test_a_large_group_ends_with_a_page_and_comes_back();
    test_what_a_group_ends_with_does_not_turn_back_time();
    test_a_torn_last_page_takes_no_more_than_itself();
    test_what_other_nodes_get_is_not_padded();
    test_both_ways_leave_the_same_bytes();
    test_a_file_that_refuses_is_written_as_usual();
    return 0;
}
