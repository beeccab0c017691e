/**
 * Examples of the document: one shopper's bag in one sale, from the reservation to the refund. A test holds each to its
 * shape.
 */

const INSTANT = "2027-01-01T00:00:12.345Z";
const ORDER_ID = "ord_0LOG5X1Q2A7GZK3M9T4WBN8RCE";
const RESERVATION_ID = "rsv_1.0.pQCfFPUPOhiLT93kNJN2ddCK4Aln1camF";
const PAYMENT_ID = "pay_0LOG5X1Q2A7GZK3M9T4WBN8RCE";

export const reserve = { lines: [{ sku: "bag-m", quantity: 1 }] };

export const pay = {
  payment: { token: "tok_ok" },
  contact: { email: "hana@example.jp", name: "山田 花", phone: "03-0000-0000" },
  shipTo: { postalCode: "150-0001", address: "東京都渋谷区神宮前 1-1" },
  returnUrl: "https://shop.example/back",
};

const saleFacts = {
  id: "ny2027",
  name: "New Year 2027",
  opensAt: "2027-01-01T00:00:00.000Z",
  closesAt: "2027-01-07T14:59:59.000Z",
  currency: "JPY",
  holdMs: 600_000,
  maxUnitsPerCustomer: 2,
  gateways: ["sandbox", "cod"],
  shippingFee: 800,
};

export const sale = {
  ...saleFacts,
  status: "open",
  serverTime: INSTANT,
  items: [{ sku: "bag-m", name: "福袋 中", unitPrice: 10_000, availability: "available", free: 42 }],
  nextReleaseAt: null,
};

const reservation = {
  id: RESERVATION_ID,
  saleId: "ny2027",
  lines: [{ sku: "bag-m", quantity: 1, unitPrice: 10_000 }],
  amount: 10_800,
  currency: "JPY",
  serverTime: INSTANT,
};
export const held = { ...reservation, status: "held", expiresAt: "2027-01-01T00:10:12.345Z" };
export const paying = {
  ...reservation,
  status: "paying",
  payment: { id: PAYMENT_ID, status: "queued", position: 3, etaMs: 4_000 },
};
export const confirmed = { ...reservation, status: "confirmed", orderId: ORDER_ID, recorded: true };
export const released = { ...reservation, status: "released" };
export const reservations = { reservations: [held] };

export const order = {
  id: ORDER_ID,
  reservationId: RESERVATION_ID,
  saleId: "ny2027",
  customerId: "c1",
  status: "confirmed",
  lines: [{ sku: "bag-m", quantity: 1, unitPrice: 10_000, name: "福袋 中" }],
  amount: 10_800,
  currency: "JPY",
  payment: { gateway: "sandbox", reference: ORDER_ID.slice(4), chargeId: "ch_1" },
  contact: pay.contact,
  shipTo: pay.shipTo,
  confirmedAt: "2027-01-01T00:00:20.000Z",
  recordedAt: "2027-01-01T00:00:20.050Z",
};
export const refunding = { ...order, status: "refunding" };
export const orders = { orders: [order], nextCursor: "NDcxMQ" };
export const ordersCsv = "order_id,reservation_id,sale_id,customer_id,status,sku,item,quantity,…\r\n";

export const createSale = {
  ...saleFacts,
  language: "ja",
  shop: { name: { ja: "福袋商店", en: "Lucky Bag Shop" }, invoiceNumber: "T1234567890123" },
  terms: { delivery: { ja: "7 日以内に発送します。", en: "Shipped within 7 days." } },
  taxPercent: 10,
  items: [{ sku: "bag-m", name: "福袋 中", unitPrice: 10_000, stock: 100 }],
};
export const patchSale = { paying: "off" };
export const topUp = { delta: 20, reason: "a second pallet arrived" };
export const refund = { reason: "arrived broken", restock: false };
export const resendMail = { reason: "the first one went into the spam folder" };

export const saleFigures = {
  ...saleFacts,
  status: "open",
  language: "ja",
  shop: createSale.shop,
  terms: createSale.terms,
  taxPercent: 10,
  serverTime: INSTANT,
  reserving: "on",
  paying: "on",
  epoch: 1,
  items: [{ sku: "bag-m", name: "福袋 中", unitPrice: 10_000, granted: 100, free: 42, held: 3, claimed: 55, sold: 53 }],
  holds: { held: 3, paying: 2 },
  gates: [
    {
      gateway: "sandbox",
      limit: 4,
      inFlight: 2,
      line: 0,
      callMs: 480,
      opensInMs: 0,
      waitMs: 0,
      permits: { charge: 2 },
      breaker: "closed",
    },
  ],
  payments: { queued: 0, sending: 2, action_required: 0, unknown: 0, refunding: 0, attention: 0 },
  journal: { length: 1, oldestMs: 40 },
  outbox: { queued: 1, sent: 52, failed: 0, oldestMs: 300 },
};
export const salesFigures = { sales: [saleFigures] };
export const toppedUp = { sku: "bag-m", delta: 20, granted: 120, free: 62, held: 3, claimed: 55, replayed: false };

export const audit = {
  saleId: "ny2027",
  at: INSTANT,
  ok: true,
  stoppedWhy: null,
  items: [
    {
      sku: "bag-m",
      name: "福袋 中",
      granted: 120,
      free: 62,
      held: 3,
      claimed: 55,
      sold: 53,
      difference: 0,
      opening: 100,
      toppedUp: 20,
      inPayment: 2,
      notPutBack: 0,
      putBack: 0,
    },
  ],
  charges: {
    captured: 53,
    refunded: 0,
    withoutOrder: 0,
    liabilities: 0,
    twice: 0,
    amountDiffers: 0,
    refundedUnasked: 0,
    odd: 0,
    accepted: 0,
  },
  orders: { recorded: 53, withoutCharge: 0 },
  mails: { queued: 1, sent: 52, failed: 0, withoutOrder: 0 },
  open: { paying: 2, unknown: 0, journalLag: 1, refunding: 0, attention: 0 },
  attention: [],
  unreadable: 0,
};
export const certificate = '<!doctype html><html lang="en">…</html>';

export const reconciled = {
  lookedUp: 1,
  ordersRecorded: 1,
  holdsFollowed: 0,
  requeued: 0,
  waitedTooLong: 0,
  refunds: 0,
  movesFinished: 0,
  strayCharges: 0,
};
export const mailQueued = { orderId: ORDER_ID, queued: true };
export const log = {
  entries: [{ at: INSTANT, action: "top-up", saleId: "ny2027", detail: { sku: "bag-m", ...topUp } }],
};

const rates = { requests: 2_100, granted: 40, refused: 1_800, shed: 0, failed: 0 };
export const live = {
  at: INSTANT,
  sales: [saleFigures],
  rates,
  point: { atMs: 1_798_761_612_345, rates, units: { ny2027: [[42, 3, 2, 53]] } },
};

export const alive = { status: "ok" };
export const ready = { status: "ready" };

export const settle = { action: "refund", reason: "charged twice the price; agreed with the customer by phone" };
const paymentInDoubt = {
  reference: "0LOG5X1Q2A7GZK3M9T4WBN8RCE",
  saleId: "ny2027",
  reservationId: RESERVATION_ID,
  customerId: "c1",
  gateway: "sandbox",
  amount: 10_800,
  currency: "JPY",
  captured: { amount: 21_600, currency: "JPY" },
  chargeId: "ch_V1StGXR8_Z5jdHi6",
  since: INSTANT,
  checkAt: "2027-01-01T00:10:12.345Z",
  orderId: null,
};
export const payments = {
  payments: [
    {
      ...paymentInDoubt,
      state: "unknown",
      needsPerson: true,
      why: "the gateway captured 21600 JPY instead of 10800 JPY",
      settled: null,
      actions: ["accept", "refund", "not_charged"],
    },
  ],
  nextCursor: null,
};
export const settledPayment = {
  ...paymentInDoubt,
  state: "refunding",
  needsPerson: false,
  why: null,
  settled: settle,
  actions: [],
};
