/* Replies of one round or job, gathered for one send. */
#ifndef BLOCKD_NBD_REPLY_H
#define BLOCKD_NBD_REPLY_H

#include "nbd_serve.h"

enum {
    BD_NBD_DATA_HEADER = 40, /* the most that stands before the data of a READ */
    BD_NBD_HEADER_BYTES = 24 << 10,
    BD_NBD_MAX_FRAGMENTS = 32, /* chunks of one READ; the rest of it is one more */
};

struct bd_nbd_output {
    enum bd_nbd_replies kind;
    int count;
    size_t used; /* of headers */
    struct iovec pieces[BD_SENT_PIECES];
    uint8_t headers[BD_NBD_HEADER_BYTES];
};

void bd_nbd_output_init(struct bd_nbd_output *output, enum bd_nbd_replies kind);

/* Bytes that the header of a READ's data takes. */
size_t bd_nbd_data_header(enum bd_nbd_replies kind);

/* Success of a request without data. */
void bd_nbd_put_done(struct bd_nbd_output *output, uint64_t cookie, uint64_t offset);

/* The header of a READ whose bytes are sent behind `output`, all as one chunk of data. */
void bd_nbd_put_header(struct bd_nbd_output *output, uint64_t cookie, uint64_t offset,
                       size_t length);

/* Whether replies of that kind would leave out blocks of zeros in these bytes, of which a piece
 * begins and ends at whole blocks, unless the request does not. */
bool bd_nbd_leaves_out(enum bd_nbd_replies kind, uint64_t offset, const struct bd_view *view);

/* A READ's bytes; right before `data` there is room for the header. With structured replies blocks
 * of zeros become holes. `left`: requests that are still to be answered in this output. */
void bd_nbd_put_data(struct bd_nbd_output *output, uint64_t cookie, uint64_t offset, uint8_t *data,
                     size_t length, int left);

#endif
