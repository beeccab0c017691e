/** @jsxImportSource hono/jsx */
/**
 * The operator's cockpit. The page is a frame of words; browser/cockpit.ts fills it from `GET /v1/admin/events` and
 * acts through the same admin routes that a bearer token may call. A session is a same-site cookie, and does nothing
 * for a page of another site (auth.ts).
 */
import type { Context as Http } from "hono";
import { bodyLimit } from "hono/body-limit";
import type { Child, FC } from "hono/jsx";
import type { Context } from "../context.ts";
import type { Routes } from "../http/api.ts";
import { type AdminAuth, isOfThisSite } from "../http/auth.ts";
import { findSale } from "../http/lookups.ts";
import { Problem } from "../http/problem.ts";
import { headerOf, incomingOf } from "../http/requests.ts";
import { auditSale } from "../recover/audit.ts";
import { certificateAnswer } from "./certificate.tsx";
import { type PageContext, page } from "./layout.tsx";

const SIGN_IN_BYTES_MAX = 4_096;
/** A wrong token is answered no faster than this: guessing is slow, and an operator does not notice. */
const WRONG_TOKEN_MS = 500;

export function cockpitRoutes(ctx: Context, routes: Routes, auth: AdminAuth): void {
  const { app } = routes;
  const home = ctx.mailbox ? "/" : "/admin";
  const menu = ({ w }: PageContext) => (
    <>
      <a href="/admin">{w.cockpit}</a> <a href="/admin/new">{w.newSale}</a>
      <form method="post" action="/admin/sign-out">
        <button type="submit" class="link">
          {w.signOut}
        </button>
      </form>
    </>
  );
  /** Behind a proxy that ends TLS, the cookie must not travel without it. */
  const isSecure = (c: Http) =>
    ctx.config.trustedProxies > 0 && headerOf(incomingOf(c).headers, "x-forwarded-proto") === "https";
  const fromHere = (c: Http) => {
    if (!isOfThisSite(c.req.method, incomingOf(c).headers))
      throw new Problem("UNAUTHENTICATED", "this form belongs to another site");
  };

  /** The cockpit for an operator who is signed in, else the sign-in form. */
  async function behind(c: Http, show: () => Promise<Response>): Promise<Response> {
    try {
      auth.check("GET", incomingOf(c).headers);
    } catch (error) {
      if (error instanceof Problem && (error.code === "UNAUTHENTICATED" || error.code === "ADMIN_DISABLED"))
        return signIn(c, error.code === "ADMIN_DISABLED" ? "disabled" : "");
      throw error;
    }
    return show();
  }
  const signIn = (c: Http, state: "" | "wrong" | "disabled") =>
    page(
      c,
      routes,
      { title: (w) => `${w.cockpit} – Fukubukuro`, home, status: state === "wrong" ? 401 : 200 },
      (pageContext) => <SignIn pageContext={pageContext} state={state} />,
    );

  app.get("/admin", (c) =>
    behind(c, () =>
      page(
        c,
        routes,
        { title: (w) => `${w.cockpit} – Fukubukuro`, script: "cockpit.js", menu, home },
        (pageContext) => <Cockpit pageContext={pageContext} />,
      ),
    ),
  );
  app.get("/admin/new", (c) =>
    behind(c, () =>
      page(
        c,
        routes,
        { title: (w) => `${w.newSale} – Fukubukuro`, script: "new-sale.js", menu, home },
        (pageContext) => <NewSale pageContext={pageContext} gateways={ctx.config.gateways} />,
      ),
    ),
  );
  app.get("/admin/sales/:saleId/certificate", (c) =>
    behind(c, async () => {
      const sale = await findSale(ctx, c.req.param("saleId"));
      const audit = await auditSale(ctx, sale.id, sale.no);
      return certificateAnswer(c, routes, sale, audit, { menu, home });
    }),
  );
  const tooLarge = () => {
    throw new Problem("BODY_TOO_LARGE", `the limit is ${SIGN_IN_BYTES_MAX} bytes`);
  };
  app.post("/admin/sign-in", bodyLimit({ maxSize: SIGN_IN_BYTES_MAX, onError: tooLarge }), async (c) => {
    fromHere(c);
    // A form that cannot be read names no token.
    const { token } = await c.req.parseBody().catch(() => ({ token: undefined }));
    const cookie = typeof token === "string" ? auth.signIn(token.trim(), isSecure(c)) : null;
    if (cookie) return routes.send(c, 303, null, { location: "/admin", "set-cookie": cookie });
    await new Promise((resolve) => setTimeout(resolve, WRONG_TOKEN_MS));
    return signIn(c, "wrong");
  });
  app.post("/admin/sign-out", (c) => {
    fromHere(c);
    return routes.send(c, 303, null, { location: "/admin", "set-cookie": auth.signOut(isSecure(c)) });
  });
}

const SignIn: FC<{ pageContext: PageContext; state: "" | "wrong" | "disabled" }> = ({ pageContext: { w }, state }) => (
  <main id="main">
    <h1>{w.cockpit}</h1>
    {state === "disabled" ? (
      <p class="problem" role="alert">
        {w.adminDisabled}
      </p>
    ) : (
      <form method="post" action="/admin/sign-in">
        {state === "wrong" && (
          <p class="problem" role="alert">
            {w.wrongToken}
          </p>
        )}
        <p class="field">
          <label for="token">{w.adminToken}</label>
          <input
            id="token"
            name="token"
            type="password"
            autocomplete="current-password"
            required
            aria-describedby="token-hint"
          />
          <small id="token-hint">{w.adminTokenHint}</small>
        </p>
        <p class="buttons">
          <button type="submit" class="primary">
            {w.signIn}
          </button>
        </p>
      </form>
    )}
  </main>
);

const Tile: FC<{ id: string; label: string }> = ({ id, label }) => (
  <div class="tile">
    <dt>{label}</dt>
    <dd id={id}>–</dd>
  </div>
);

const Light: FC<{ id: string; question: string; w: PageContext["w"] }> = ({ id, question, w }) => (
  <div class="light" id={id} data-state="none">
    <h3>{question}</h3>
    <p class="verdict">{w.notRead}</p>
    <p class="figures" />
  </div>
);

const Table: FC<{ id: string; label: string; heads: string[] }> = ({ id, label, heads }) => (
  // A wide table scrolls by itself, also by keyboard.
  <section class="scroll" tabindex={0} aria-label={label}>
    <table>
      <thead>
        <tr>
          {heads.map((h) => (
            <th scope="col">{h || <span class="sr">–</span>}</th>
          ))}
        </tr>
      </thead>
      <tbody id={id} />
    </table>
  </section>
);

const Section: FC<{ id: string; title: string; children?: Child }> = ({ id, title, children }) => (
  <section aria-labelledby={`${id}-title`} class={`panel ${id}`}>
    <h2 id={`${id}-title`}>{title}</h2>
    {children}
  </section>
);

const Cockpit: FC<{ pageContext: PageContext }> = ({ pageContext: { w } }) => (
  <main id="main" class="cockpit">
    <h1 class="sr">{w.cockpit}</h1>
    <div class="head">
      <p class="field">
        <label for="sale">{w.sale}</label>
        <select id="sale" />
      </p>
      <p id="sale-state" class="status" />
      <p id="live" class="live" role="status">
        {w.connecting}
      </p>
    </div>
    <Section id="questions" title={w.questions}>
      <div class="lights">
        <Light id="light-stock" question={w.stockOff} w={w} />
        <Light id="light-charges" question={w.chargedWithoutOrder} w={w} />
        <Light id="light-mails" question={w.mailedWithoutOrder} w={w} />
      </div>
      <p class="fine" id="books-at" />
    </Section>
    <Section id="units" title={w.unitsOverTime}>
      <p class="field">
        <label for="chart-item">{w.item}</label>
        <select id="chart-item" />
      </p>
      <div id="units-chart" class="chart" role="img" aria-label={w.unitsOverTime} />
    </Section>
    <Section id="rates" title={`${w.requestsOverTime} (${w.thisNode})`}>
      <dl class="tiles">
        <Tile id="rate-requests" label={w.requests} />
        <Tile id="rate-granted" label={w.grantedPerSecond} />
        <Tile id="rate-refused" label={w.refusedPerSecond} />
        <Tile id="rate-shed" label={w.shedPerSecond} />
        <Tile id="rate-failed" label={w.failedPerSecond} />
      </dl>
      <div id="rates-chart" class="chart" role="img" aria-label={w.requestsOverTime} />
    </Section>
    <Section id="stock" title={w.stock}>
      <Table id="stock-rows" label={w.stock} heads={[w.item, w.granted, w.free, w.held, w.inPayment, w.sold, ""]} />
    </Section>
    <Section id="gate" title={w.gate}>
      <Table id="gate-rows" label={w.gate} heads={["", w.inFlight, w.permits, w.line, w.wait, w.breaker]} />
      <h3>{w.lags}</h3>
      <dl class="tiles">
        <Tile id="lag-journal" label={w.journalLag} />
        <Tile id="lag-outbox" label={w.outboxLag} />
        <Tile id="mails-failed" label={w.mailsFailed} />
        <Tile id="open-payments" label={w.openPayments} />
        <Tile id="open-unknown" label={w.unknownPayments} />
        <Tile id="open-refunding" label={w.refunding} />
        <Tile id="open-attention" label={w.attention} />
      </dl>
    </Section>
    <Section id="actions" title={w.actions}>
      <p id="said" role="status" class="said" />
      <dl class="switches">
        <dt>{w.reservingNow}</dt>
        <dd>
          <span id="reserving" />{" "}
          <button type="button" id="switch-reserving" disabled>
            {w.pause}
          </button>
        </dd>
        <dt>{w.payingNow}</dt>
        <dd>
          <span id="paying-switch" />{" "}
          <button type="button" id="switch-paying" disabled>
            {w.pause}
          </button>
        </dd>
      </dl>
      <p class="buttons">
        <button type="button" id="extend">
          {w.extend}
        </button>
        <button type="button" id="close">
          {w.close}
        </button>
        <button type="button" id="reconcile">
          {w.reconcile}
        </button>
        <a class="button" id="certificate" href="/admin">
          {w.certificate}
        </a>
        <a class="button" id="csv" href="/v1/admin/orders?format=csv" download="orders.csv">
          {w.ordersCsv}
        </a>
      </p>
    </Section>
    <section aria-labelledby="attention-title" class="panel attention" id="attention" hidden>
      <h2 id="attention-title">{w.attention}</h2>
      <p class="fine">{w.attentionLead}</p>
      <Table id="attention-rows" label={w.attention} heads={[w.payment, w.since, w.why, w.amount, w.state, ""]} />
    </section>
    <Section id="orders" title={w.orders}>
      <Table id="order-rows" label={w.orders} heads={[w.order, w.orderedAt, w.customer, w.amount, w.state, ""]} />
      <p class="buttons">
        <button type="button" id="more-orders" hidden>
          {w.moreOrders}
        </button>
      </p>
    </Section>
    <Section id="trail" title={w.trail}>
      <Table id="trail-rows" label={w.trail} heads={[w.at, w.actions, ""]} />
    </Section>
    <dialog id="ask" aria-labelledby="ask-title">
      <form method="dialog" id="ask-form">
        <h2 id="ask-title">{w.confirmAction}</h2>
        <p id="ask-words" />
        <div id="ask-fields" />
        <p id="ask-problem" class="problem" role="alert" hidden />
        <p class="buttons">
          <button type="submit" class="primary" id="ask-yes">
            {w.apply}
          </button>
          <button type="button" id="ask-no">
            {w.cancel}
          </button>
        </p>
      </form>
    </dialog>
  </main>
);

const Field: FC<{ name: string; label: string; type?: string; value?: string; required?: boolean; min?: number }> = (
  f,
) => (
  <p class="field">
    <label for={f.name}>{f.label}</label>
    <input
      id={f.name}
      name={f.name}
      type={f.type ?? "text"}
      value={f.value}
      required={f.required === true}
      min={f.min}
    />
  </p>
);

const Area: FC<{ name: string; label: string }> = ({ name, label }) => (
  <p class="field">
    <label for={name}>{label}</label>
    <textarea id={name} name={name} rows={2} />
  </p>
);

const NewSale: FC<{ pageContext: PageContext; gateways: string[] }> = ({ pageContext: { w }, gateways }) => (
  <main id="main">
    <h1>{w.newSale}</h1>
    <form id="sale-form" novalidate>
      <p id="problem" class="problem" role="alert" hidden />
      <Field name="id" label={w.saleId} required />
      <Field name="name" label={w.saleName} required />
      <div class="row">
        <Field name="opensAt" label={w.opensAtField} type="datetime-local" required />
        <Field name="closesAt" label={w.closesAtField} type="datetime-local" required />
      </div>
      <div class="row">
        <Field name="holdMinutes" label={w.holdMinutes} type="number" value="10" min={1} required />
        <Field name="limit" label={w.limitField} type="number" value="2" min={1} required />
        <Field name="shippingFee" label={w.shippingFee} type="number" value="0" min={0} required />
        <Field name="currency" label={w.currency} value="JPY" required />
      </div>
      <p class="field">
        <label for="language">{w.language}</label>
        <select id="language" name="language">
          <option value="">{w.byShopper}</option>
          <option value="ja">日本語</option>
          <option value="en">English</option>
        </select>
      </p>
      <fieldset>
        <legend>{w.payment}</legend>
        {gateways.map((g) => (
          <p>
            <label>
              <input type="checkbox" name="gateways" value={g} checked /> {w.gateways[g] ?? g}
            </label>
          </p>
        ))}
      </fieldset>
      <fieldset>
        <legend>{w.stock}</legend>
        <div id="item-rows" />
        <p class="buttons">
          <button type="button" id="add-item">
            {w.addItem}
          </button>
        </p>
      </fieldset>
      <fieldset>
        <legend>{w.shop}</legend>
        <Field name="shopName" label={w.shopName} />
        <Field name="shopAddress" label={w.shopAddress} />
        <Field name="shopPhone" label={w.phone} type="tel" />
        <Field name="shopEmail" label={w.email} type="email" />
        <Field name="invoiceNumber" label={w.invoiceNumberField} />
      </fieldset>
      <fieldset>
        <legend>{w.terms}</legend>
        <Area name="termsPayment" label={w.paymentTime} />
        <Area name="termsDelivery" label={w.delivery} />
        <Area name="termsCancellation" label={w.cancellation} />
        <Area name="termsNotes" label={w.notes} />
      </fieldset>
      <p class="buttons">
        <button type="submit" class="primary">
          {w.create}
        </button>
      </p>
    </form>
  </main>
);
