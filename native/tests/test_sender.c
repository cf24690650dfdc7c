/* What a primary does with every write: each member gets each record once and in order, and nothing
 * is acknowledged that W do not have, whatever answers come, and whoever took the tap before. */
#include "sender.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "gate.h"
#include "member.h"
#include "rig.h"
#include "tap.h"

enum { SEGMENT = 1 << 20, VOLUME = 1 << 22, BLOCK = 4096, OTHERS = 2, EPOCH = 5, ROUNDS = 4000 };

static const uint64_t HOUR_NS = UINT64_C(3600000000000);

struct group {
    struct rig primary;
    struct rig others[OTHERS];
    struct bd_sender *sender;
    uint64_t now_ns;
    uint8_t byte;
};

static void lend(struct group *group, size_t room)
{
    struct bd_sender *sender = group->sender;
    sender->wanted = 2;
    sender->own_durable = 0;
    sender->acked = sender->durable = 0;
    sender->taken = 0;
    sender->next_tag = 7;
    sender->room = room;
    sender->member_count = OTHERS;
    for (int i = 0; i < OTHERS; i++)
        sender->members[i] = (struct bd_sender_member){.counts = true, .in_step = true};
    CHECK(bd_sender_begin(sender));
}

static void group_init(struct group *group, size_t room)
{
    memset(group, 0, sizeof *group);
    rig_init(&group->primary, SEGMENT, 12, VOLUME);
    rig_holes(&group->primary, VOLUME / RIG_CHUNK);
    for (int i = 0; i < OTHERS; i++) {
        rig_init(&group->others[i], SEGMENT, 12, VOLUME);
        rig_holes(&group->others[i], VOLUME / RIG_CHUNK);
        bd_member_take_plain(group->others[i].volume, EPOCH);
    }
    uint64_t start;
    CHECK_EQ(bd_tap_open(group->primary.volume, 4 << 20, &start), 0);
    CHECK_EQ(bd_gate_new(group->primary.volume), 0);
    bd_gate_open(group->primary.volume, 0, false, HOUR_NS);
    bd_gate_lease(group->primary.volume->gate, bd_gate_now_ns() + HOUR_NS);
    group->sender = bd_sender_new(group->primary.volume, EPOCH);
    CHECK(group->sender != NULL);
    lend(group, room);
}

static void group_destroy(struct group *group)
{
    bd_sender_free(group->sender);
    for (int i = 0; i < OTHERS; i++)
        rig_destroy(&group->others[i]);
    rig_destroy(&group->primary);
}

static void write_blocks(struct group *group, int count)
{
    for (int i = 0; i < count; i++) {
        uint8_t data[BLOCK];
        memset(data, ++group->byte, sizeof data);
        uint64_t offset = (uint64_t)(rand() % (VOLUME / BLOCK)) * BLOCK;
        CHECK_EQ(rig_do(&group->primary, BD_ACTION_WRITE, offset, BLOCK, data, NULL),
                 BD_ACTION_WAIT_ACKS);
    }
}

/* A member gets what is sent to it; as the wire has it, in one frame. */
static void arrive(struct group *group, const struct bd_sender_send *send)
{
    const struct bd_sender *sender = group->sender;
    uint8_t *bytes = malloc(2 * BD_SENDER_JOINED);
    CHECK(bytes != NULL);
    size_t length = 0;
    for (uint32_t i = send->from; i < send->from + send->count; i++) {
        memcpy(bytes + length, sender->batches[i].bytes, sender->batches[i].length);
        length += sender->batches[i].length;
    }
    struct rig *member = &group->others[send->member];
    struct bd_member_plain asked = {EPOCH, member->volume->epoch, send->first, send->last};
    uint64_t durable;
    CHECK(bd_member_append_plain(member->volume, &asked, bytes, length, 1, 1, &durable));
    free(bytes);
}

static int turn(struct group *group)
{
    return bd_sender_turn(group->sender, ++group->now_ns);
}

static int acked(struct group *group, uint64_t tag, uint64_t received)
{
    return bd_sender_acked(group->sender, tag, EPOCH, received, 0, ++group->now_ns);
}

static void test_what_is_written_goes_to_all_and_w_let_it_go(void)
{
    struct group group;
    group_init(&group, SIZE_MAX);
    struct bd_sender *sender = group.sender;
    write_blocks(&group, 1);
    CHECK_EQ(turn(&group), 0);
    CHECK_EQ(sender->send_count, 2);
    for (int i = 0; i < OTHERS; i++) {
        CHECK_EQ(sender->sends[i].member, i);
        CHECK_EQ(sender->sends[i].tag, 7 + i);
        CHECK_EQ(sender->sends[i].first, 1);
        arrive(&group, &sender->sends[i]);
    }
    write_blocks(&group, 3); /* these wait for an answer, to go together */
    CHECK_EQ(turn(&group), 0);
    CHECK_EQ(sender->send_count, 0);
    CHECK_EQ(group.primary.volume->gate->acked, 0);
    CHECK_EQ(acked(&group, 8, 1), 0);
    CHECK_EQ(group.primary.volume->gate->acked, 1);
    CHECK_EQ(sender->send_count, 1);
    CHECK_EQ(sender->sends[0].first, 2);
    CHECK_EQ(sender->sends[0].last, 4);
    CHECK_EQ(sender->batch_count, 2);
    CHECK_EQ(acked(&group, 7, 1), 0);
    CHECK_EQ(sender->batch_count, 1);
    CHECK_EQ(sender->send_count, 1);
    group_destroy(&group);
}

static void test_what_is_not_plain_is_not_counted(void)
{
    struct group group;
    group_init(&group, SIZE_MAX);
    write_blocks(&group, 2);
    CHECK_EQ(turn(&group), 0);
    CHECK_EQ(acked(&group, 0, 2), -ENOENT);
    CHECK_EQ(acked(&group, 9, 2), -ENOENT);
    CHECK_EQ(acked(&group, 7, 1), -ENOENT);
    CHECK_EQ(acked(&group, 7, 3), -ENOENT);
    CHECK_EQ(bd_sender_acked(group.sender, 7, EPOCH + 1, 2, 0, 1), -ENOENT);
    CHECK_EQ(group.sender->members[0].tag, 7);
    CHECK_EQ(group.primary.volume->gate->acked, 0);
    /* What it calls durable is not more than it has. */
    CHECK_EQ(bd_sender_acked(group.sender, 7, EPOCH, 2, 99, 1), 0);
    CHECK_EQ(group.sender->members[0].durable, 2);
    CHECK_EQ(group.primary.volume->gate->acked, 2);
    CHECK_EQ(group.primary.volume->gate->durable, 0); /* here it is not on the disk */
    CHECK_EQ(acked(&group, 7, 2), -ENOENT);           /* told twice */
    bd_sender_end(group.sender);
    CHECK_EQ(group.sender->newest, 2);
    CHECK_EQ(acked(&group, 8, 2), -ENOENT);
    CHECK_EQ(turn(&group), -EAGAIN);
    group_destroy(&group);
}

static void test_a_silent_member_holds_nobody_up_and_its_queue_ends(void)
{
    struct group group;
    group_init(&group, 10 * (BLOCK + 64));
    struct bd_sender *sender = group.sender;
    int error = 0;
    int rounds = 0;
    write_blocks(&group, 1);
    CHECK_EQ(turn(&group), 0);
    uint64_t tag = sender->sends[1].tag; /* of the other one nothing is heard */
    while (error == 0) {
        write_blocks(&group, 1);
        error = acked(&group, tag, sender->members[1].sent);
        CHECK_EQ(group.primary.volume->gate->acked, sender->members[1].received);
        if (error == 0)
            tag = sender->sends[0].tag;
        rounds++;
    }
    CHECK_EQ(error, -EAGAIN);
    CHECK_EQ(rounds, 10);
    CHECK_EQ(sender->batch_count, 11); /* who lent finds all of them, with the one too many */
    CHECK_EQ(sender->batches[0].first, 1);
    CHECK_EQ(sender->batches[10].last, sender->taken);
    group_destroy(&group);
    /* So many batches are kept, however short they are. */
    group_init(&group, SIZE_MAX);
    sender = group.sender;
    write_blocks(&group, 1);
    CHECK_EQ(turn(&group), 0);
    for (error = 0; error == 0;) {
        write_blocks(&group, 1);
        error = acked(&group, sender->members[1].tag, sender->members[1].sent);
    }
    CHECK_EQ(sender->batch_count, BD_SENDER_BATCHES);
    group_destroy(&group);
}

static void test_it_is_not_lent_what_is_not_in_step(void)
{
    struct group group;
    group_init(&group, SIZE_MAX);
    bd_sender_end(group.sender);
    struct bd_sender *sender = group.sender;
    sender->taken = 1; /* records that a member was not sent are elsewhere */
    CHECK(!bd_sender_begin(sender));
    sender->members[0].in_step = sender->members[1].in_step = false;
    CHECK(bd_sender_begin(sender));
    bd_sender_end(sender);
    sender->members[0].durable = 1;
    CHECK(!bd_sender_begin(sender));
    sender->members[0].durable = 0;
    sender->wanted = 1;
    CHECK(!bd_sender_begin(sender));
    sender->wanted = 4;
    CHECK(!bd_sender_begin(sender));
    group_destroy(&group);
}

static void test_large_records_are_left_to_who_lent(void)
{
    struct group group;
    group_init(&group, SIZE_MAX);
    uint8_t *data = malloc(RIG_CHUNK);
    CHECK(data != NULL);
    memset(data, 1, RIG_CHUNK);
    CHECK_EQ(rig_do(&group.primary, BD_ACTION_WRITE, 0, RIG_CHUNK, data, NULL),
             BD_ACTION_WAIT_ACKS);
    CHECK_EQ(turn(&group), -EAGAIN);
    CHECK_EQ(group.sender->send_count, 0);
    CHECK_EQ(group.sender->batch_count, 1);
    CHECK_EQ(group.sender->taken, 1);
    free(data);
    group_destroy(&group);
}

static void test_a_lost_tap_is_left_to_who_lent(void)
{
    struct group group;
    group_init(&group, SIZE_MAX);
    group.primary.volume->tap->lost = true;
    CHECK_EQ(turn(&group), -EAGAIN);
    CHECK_EQ(group.sender->batch_count, 0);
    CHECK_EQ(group.sender->taken, 0);
    group_destroy(&group);
}

/* Takes all back and lends it again, as who lent does in between with nothing to decide. */
static void there_and_back(struct group *group)
{
    struct bd_sender *sender = group->sender;
    bd_sender_end(sender);
    bool plain = true;
    for (int i = 0; i < OTHERS; i++)
        plain = plain && sender->members[i].tag == 0 && sender->members[i].sent == sender->taken;
    if (plain)
        CHECK(bd_sender_begin(sender));
    else
        sender->on = true; /* as it was */
}

static void test_members_have_what_the_primary_has_whatever_happens(void)
{
    for (int seed = 0; seed < 8; seed++) {
        srand((unsigned)seed);
        struct group group;
        group_init(&group, SIZE_MAX);
        struct bd_sender *sender = group.sender;
        for (int round = 0; round < ROUNDS / 8; round++) {
            int draw = rand() % 10;
            if (draw < 4)
                write_blocks(&group, 1 + rand() % 3);
            if (draw == 4)
                there_and_back(&group);
            struct bd_sender_member *member = &sender->members[rand() % OTHERS];
            int error = draw < 6 || member->tag == 0 ? turn(&group)
                                                     : acked(&group, member->tag, member->sent);
            for (int i = 0; i < sender->send_count; i++)
                arrive(&group, &sender->sends[i]); /* in order and without a gap, or it says so */
            CHECK(error == 0 || error == -EAGAIN);
            uint64_t most = 0;
            for (int i = 0; i < OTHERS; i++) {
                CHECK_EQ(group.others[i].volume->seq, sender->members[i].sent);
                if (sender->members[i].received > most)
                    most = sender->members[i].received;
            }
            CHECK_EQ(group.primary.volume->gate->acked, most);
            rig_round(&group.primary);
            for (int i = 0; i < OTHERS; i++)
                rig_round(&group.others[i]);
        }
        group_destroy(&group);
    }
}

int main(void)
{
    test_what_is_written_goes_to_all_and_w_let_it_go();
    test_what_is_not_plain_is_not_counted();
    test_a_silent_member_holds_nobody_up_and_its_queue_ends();
    test_it_is_not_lent_what_is_not_in_step();
    test_large_records_are_left_to_who_lent();
    test_a_lost_tap_is_left_to_who_lent();
    test_members_have_what_the_primary_has_whatever_happens();
    return 0;
}
