#include "nbd_reply.h"

#include "big_endian.h"
#include "blocks.h"
#include "guard.h"
#include "nbd_wire.h"

enum { HOLE_BLOCK = 4096 }; /* alignment and least length of a hole */

void bd_nbd_output_init(struct bd_nbd_output *output, enum bd_nbd_replies kind)
{
    output->kind = kind;
    output->count = 0;
    output->used = 0;
}

size_t bd_nbd_data_header(enum bd_nbd_replies kind)
{
    switch (kind) {
    case BD_NBD_SIMPLE:
        return BD_NBD_SIMPLE_REPLY;
    case BD_NBD_STRUCTURED:
        return BD_NBD_STRUCTURED_REPLY + BD_NBD_CHUNK_OFFSET;
    default:
        return BD_NBD_EXTENDED_REPLY + BD_NBD_CHUNK_OFFSET;
    }
}

static void push(struct bd_nbd_output *output, const uint8_t *data, size_t length)
{
    if (output->count > 0) {
        struct iovec *last = &output->pieces[output->count - 1];
        if ((const uint8_t *)last->iov_base + last->iov_len == data) {
            last->iov_len += length;
            return;
        }
    }
    output->pieces[output->count++] = (struct iovec){(void *)(uintptr_t)data, length};
}

static void put_simple(uint8_t *at, uint64_t cookie)
{
    bd_put_be32(at, BD_NBD_SIMPLE_REPLY_MAGIC);
    bd_put_be32(at + 4, 0);
    bd_put_be64(at + 8, cookie);
}

/* A chunk's header; returns how many bytes it took. */
static size_t put_chunk(uint8_t *at, bool extended, uint16_t flags, uint16_t type, uint64_t cookie,
                        uint64_t offset, uint64_t length)
{
    bd_put_be32(at, extended ? BD_NBD_EXTENDED_REPLY_MAGIC : BD_NBD_STRUCTURED_REPLY_MAGIC);
    bd_put_be16(at + 4, flags);
    bd_put_be16(at + 6, type);
    bd_put_be64(at + 8, cookie);
    if (!extended) {
        bd_put_be32(at + 16, (uint32_t)length);
        return BD_NBD_STRUCTURED_REPLY;
    }
    bd_put_be64(at + 16, offset);
    bd_put_be64(at + 24, length);
    return BD_NBD_EXTENDED_REPLY;
}

void bd_nbd_put_done(struct bd_nbd_output *output, uint64_t cookie, uint64_t offset)
{
    uint8_t *at = output->headers + output->used;
    size_t length = BD_NBD_SIMPLE_REPLY;
    if (output->kind == BD_NBD_EXTENDED)
        length = put_chunk(at, true, BD_NBD_REPLY_FLAG_DONE, BD_NBD_REPLY_NONE, cookie, offset, 0);
    else
        put_simple(at, cookie);
    output->used += length;
    push(output, at, length);
}

struct fragment {
    size_t start;
    size_t end;
    bool hole;
};

static bool zero_block(const uint8_t *block)
{
    return block[0] == 0 && block[HOLE_BLOCK - 1] == 0 && bd_is_zero(block, HOLE_BLOCK);
}

/* Cut what was read at `offset` into data and holes, in order and without gaps. */
static int find_holes(const uint8_t *data, size_t length, uint64_t offset,
                      struct fragment fragments[BD_NBD_MAX_FRAGMENTS + 1])
{
    int count = 0;
    size_t done = 0; /* everything before is in `fragments` */
    size_t at = (size_t)(-offset % HOLE_BLOCK);
    while (at + HOLE_BLOCK <= length && count < BD_NBD_MAX_FRAGMENTS - 1) {
        size_t end = at;
        while (end + HOLE_BLOCK <= length && zero_block(data + end))
            end += HOLE_BLOCK;
        if (end == at) {
            at += HOLE_BLOCK;
            continue;
        }
        if (at > done)
            fragments[count++] = (struct fragment){done, at, false};
        fragments[count++] = (struct fragment){at, end, true};
        done = at = end;
    }
    if (done < length)
        fragments[count++] = (struct fragment){done, length, false};
    return count;
}

static void put_fragment(struct bd_nbd_output *output, uint64_t cookie, uint64_t offset,
                         const uint8_t *data, const struct fragment *fragment, uint16_t flags)
{
    bool extended = output->kind == BD_NBD_EXTENDED;
    uint8_t *header = output->headers + output->used;
    uint64_t where = offset + fragment->start;
    size_t length = fragment->end - fragment->start;
    size_t taken;
    if (fragment->hole) {
        taken = put_chunk(header, extended, flags, BD_NBD_REPLY_OFFSET_HOLE, cookie, offset, 12);
        bd_put_be64(header + taken, where);
        bd_put_be32(header + taken + 8, (uint32_t)length);
        taken += 12;
    } else {
        taken = put_chunk(header, extended, flags, BD_NBD_REPLY_OFFSET_DATA, cookie, offset,
                          BD_NBD_CHUNK_OFFSET + length);
        bd_put_be64(header + taken, where);
        taken += BD_NBD_CHUNK_OFFSET;
    }
    output->used += taken;
    push(output, header, taken);
    if (!fragment->hole)
        push(output, data + fragment->start, length);
}

/* What stands before the data of a READ, bd_nbd_data_header bytes. */
static void put_header(enum bd_nbd_replies kind, uint8_t *at, uint64_t cookie, uint64_t offset,
                       size_t length)
{
    if (kind == BD_NBD_SIMPLE) {
        put_simple(at, cookie);
        return;
    }
    size_t taken =
        put_chunk(at, kind == BD_NBD_EXTENDED, BD_NBD_REPLY_FLAG_DONE, BD_NBD_REPLY_OFFSET_DATA,
                  cookie, offset, BD_NBD_CHUNK_OFFSET + length);
    bd_put_be64(at + taken, offset);
}

void bd_nbd_put_header(struct bd_nbd_output *output, uint64_t cookie, uint64_t offset,
                       size_t length)
{
    uint8_t *header = output->headers + output->used;
    size_t taken = bd_nbd_data_header(output->kind);
    put_header(output->kind, header, cookie, offset, length);
    output->used += taken;
    push(output, header, taken);
}

struct search {
    const struct bd_view_piece *piece;
    size_t first; /* block in it */
    bool found;
};

static void search_piece(void *argument)
{
    struct search *search = argument;
    const struct bd_view_piece *piece = search->piece;
    for (size_t at = search->first; at + HOLE_BLOCK <= piece->length && !search->found;
         at += HOLE_BLOCK)
        search->found = zero_block(piece->data + at);
}

bool bd_nbd_leaves_out(enum bd_nbd_replies kind, uint64_t offset, const struct bd_view *view)
{
    if (kind == BD_NBD_SIMPLE)
        return false;
    for (unsigned i = 0; i < view->piece_count; i++) {
        const struct bd_view_piece *piece = &view->pieces[i];
        struct search search = {piece, (size_t)(-offset % HOLE_BLOCK), false};
        if (!bd_guarded(piece->data, piece->length, search_piece, &search) || search.found)
            return true; /* what cannot be looked at cannot be copied either, which is noticed */
        offset += piece->length;
    }
    return false;
}

void bd_nbd_put_data(struct bd_nbd_output *output, uint64_t cookie, uint64_t offset, uint8_t *data,
                     size_t length, int left)
{
    size_t taken = bd_nbd_data_header(output->kind);
    uint8_t *header = data - taken;
    if (output->kind == BD_NBD_SIMPLE) {
        put_header(output->kind, header, cookie, offset, length);
        push(output, header, taken + length);
        return;
    }
    struct fragment fragments[BD_NBD_MAX_FRAGMENTS + 1];
    int count = find_holes(data, length, offset, fragments);
    size_t room = BD_NBD_HEADER_BYTES - output->used;
    size_t wanted = (size_t)(count + left) * (BD_NBD_EXTENDED_REPLY + 12);
    bool fits = output->count + 2 * (count + left) <= BD_SENT_PIECES && wanted <= room;
    if (count > 1 || fragments[0].hole) {
        for (int i = 0; fits && i < count; i++)
            put_fragment(output, cookie, offset, data, &fragments[i],
                         i == count - 1 ? BD_NBD_REPLY_FLAG_DONE : 0);
        if (fits)
            return;
    }
    put_header(output->kind, header, cookie, offset, length);
    push(output, header, taken + length);
}
